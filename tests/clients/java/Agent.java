import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.admin.TransactionListing;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Apache Kafka's own clients as an agent: requests as agent.py describes them. */
final class Agent implements ConsumerRebalanceListener {
    private static final int PATIENCE_SECONDS = 50;
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final boolean NEXT_PROTOCOL = "consumer".equals(System.getenv("STRANDLINE_GROUP_PROTOCOL"));

    private final Properties common = new Properties();
    private final Admin admin;
    private final Map<String, KafkaProducer<byte[], byte[]>> producers = new HashMap<>();
    private KafkaProducer<byte[], byte[]> transactional;
    private KafkaConsumer<byte[], byte[]> consumer;
    private String topic;
    private ArrayNode events = JSON.createArrayNode();

    private Agent(String bootstrap, String clientId) {
        common.put("bootstrap.servers", bootstrap);
        common.put("client.id", clientId);
        admin = Admin.create(common);
    }

    static void serve(String bootstrap, String clientId) throws IOException {
        Agent agent = new Agent(bootstrap, clientId);
        PrintStream out = System.out;
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            ObjectNode answer = JSON.createObjectNode();
            try {
                agent.obey(JSON.readTree(line), answer);
            } catch (ExecutionException failed) {
                answer.put("error", String.valueOf(failed.getCause()));
            } catch (Exception failed) {
                answer.put("error", failed + (failed.getCause() == null ? "" : ", caused by " + failed.getCause()));
            }
            out.println(JSON.writeValueAsString(answer));
            out.flush();
        }
    }

    private void obey(JsonNode request, ObjectNode answer) throws Exception {
        String named = request.path("topic").asText();
        TopicPartition partition = new TopicPartition(String.valueOf(topic), request.path("partition").asInt());
        switch (request.get("do").asText()) {
            case "hello" -> answer.putArray("lacks");
            case "send" -> send(named, request.get("codec").asText(), request.get("records"), answer.putArray("sent"));
            case "open" -> open(named, request);
            case "poll" -> poll(request.get("ms").asInt(), answer);
            case "commit" -> commit(request.get("offsets"));
            case "committed" -> committed(request.get("partitions"), answer.putObject("offsets"));
            case "pause" -> consumer.pause(List.of(partition));
            case "resume" -> consumer.resume(List.of(partition));
            case "seek" -> consumer.seek(partition, request.get("offset").asLong());
            case "times" -> times(request.get("timestamp").asLong(), answer.putObject("offsets"));
            case "close" -> consumer.close();
            case "create" -> create(named, request.get("partitions").asInt(), request.get("configs"));
            case "partitions" -> partitions(named, answer);
            case "grow" ->
                wait(admin.createPartitions(Map.of(named, NewPartitions.increaseTo(request.get("count").asInt()))).all());
            case "delete" -> wait(admin.deleteTopics(List.of(named)).all());
            case "alter" -> alter(named, request.get("configs"));
            case "config" -> answer.put("value", config(named, request.get("name").asText()));
            case "init_transactions" -> initTransactions(request.get("id").asText(), request.get("timeout_ms").asInt());
            case "begin_transaction" -> transactional.beginTransaction();
            case "add_offsets" ->
                transactional.sendOffsetsToTransaction(positions(request.get("offsets")), consumer.groupMetadata());
            case "end_transaction" -> {
                if (request.get("commit").asBoolean()) {
                    transactional.commitTransaction();
                } else {
                    transactional.abortTransaction();
                }
            }
            case "describe_transactions" -> describeTransactions(request.get("id").asText(), named, answer);
            default -> answer.put("error", request + " is no request");
        }
    }

    private static <T> T wait(KafkaFuture<T> future) throws Exception {
        return future.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    }

    // ---- producing

    private void send(String topic, String codec, JsonNode records, ArrayNode sent) throws Exception {
        KafkaProducer<byte[], byte[]> producer =
                transactional != null ? transactional : producers.computeIfAbsent(codec, this::producer);
        List<Future<RecordMetadata>> futures = new ArrayList<>();
        for (JsonNode r : records) {
            Integer partition = r.get("p").isNull() ? null : r.get("p").asInt();
            Long timestamp = r.get("t").isNull() ? null : r.get("t").asLong();
            ProducerRecord<byte[], byte[]> record =
                    new ProducerRecord<>(topic, partition, timestamp, bytes(r.get("k")), bytes(r.get("v")));
            for (JsonNode header : r.get("h")) {
                record.headers().add(header.get(0).asText(), bytes(header.get(1)));
            }
            futures.add(producer.send(record));
        }
        producer.flush();
        for (Future<RecordMetadata> future : futures) {
            try {
                RecordMetadata at = future.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
                sent.addArray().add(at.partition()).add(at.offset());
            } catch (ExecutionException failed) {
                sent.add(String.valueOf(failed.getCause()));
            }
        }
    }

    private KafkaProducer<byte[], byte[]> producer(String codec) {
        Properties settings = with("compression.type", codec);
        // The broker is to refuse what is too large, not the client.
        settings.put("max.request.size", 5_000_000);
        return new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private Properties with(String name, Object value) {
        Properties settings = new Properties();
        settings.putAll(common);
        settings.put(name, value);
        return settings;
    }

    private static byte[] bytes(JsonNode text) throws IOException {
        return text == null || text.isNull() ? null : text.binaryValue();
    }

    // ---- consuming

    private void open(String topic, JsonNode request) {
        Properties settings = with("group.id", request.get("group").asText());
        settings.put("enable.auto.commit", false);
        settings.put("auto.offset.reset", request.get("reset").asText());
        if (request.has("isolation")) {
            settings.put("isolation.level", request.get("isolation").asText());
        }
        settings.put("fetch.max.wait.ms", 100);
        if (NEXT_PROTOCOL) {
            settings.put("group.protocol", "consumer");
        } else {
            settings.put("session.timeout.ms", 6000);
            settings.put("heartbeat.interval.ms", 1000);
        }
        this.topic = topic;
        events = JSON.createArrayNode();
        consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        consumer.subscribe(List.of(topic), this);
    }

    @Override
    public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
        note("assigned", partitions);
    }

    @Override
    public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
        note("revoked", partitions);
    }

    private void note(String what, Collection<TopicPartition> partitions) {
        ArrayNode numbers = events.addArray().add(what).addArray();
        partitions.forEach(p -> numbers.add(p.partition()));
    }

    private void poll(int ms, ObjectNode answer) {
        ArrayNode records = answer.putArray("records");
        ArrayNode errors = answer.putArray("errors");
        try {
            for (ConsumerRecord<byte[], byte[]> r : consumer.poll(Duration.ofMillis(ms))) {
                ObjectNode record = records.addObject();
                record.put("p", r.partition()).put("o", r.offset()).put("t", r.timestamp());
                record.put("k", r.key()).put("v", r.value());
                ArrayNode headers = record.putArray("h");
                for (Header header : r.headers()) {
                    headers.addArray().add(header.key()).add(header.value());
                }
            }
        } catch (KafkaException failed) {
            errors.add(failed.toString());
        }
        answer.set("events", events);
        events = JSON.createArrayNode();
    }

    private void commit(JsonNode offsets) {
        consumer.commitSync(positions(offsets));
    }

    private Map<TopicPartition, OffsetAndMetadata> positions(JsonNode offsets) {
        Map<TopicPartition, OffsetAndMetadata> wanted = new HashMap<>();
        offsets.fields().forEachRemaining(at -> {
            TopicPartition partition = new TopicPartition(topic, Integer.parseInt(at.getKey()));
            wanted.put(partition, new OffsetAndMetadata(at.getValue().asLong(), Optional.empty(), ""));
        });
        return wanted;
    }

    private void committed(JsonNode partitions, ObjectNode offsets) {
        Set<TopicPartition> asked = new HashSet<>();
        partitions.forEach(p -> asked.add(new TopicPartition(topic, p.asInt())));
        consumer.committed(asked).forEach((p, at) -> offsets.put("" + p.partition(), at == null ? -1 : at.offset()));
    }

    private void times(long timestamp, ObjectNode offsets) {
        Map<TopicPartition, Long> asked = new HashMap<>();
        consumer.assignment().forEach(p -> asked.put(p, timestamp));
        for (Map.Entry<TopicPartition, OffsetAndTimestamp> at : consumer.offsetsForTimes(asked).entrySet()) {
            offsets.put("" + at.getKey().partition(), at.getValue() == null ? null : at.getValue().offset());
        }
    }

    // ---- transactions

    private void initTransactions(String id, int timeoutMs) {
        Properties settings = with("transactional.id", id);
        settings.put("transaction.timeout.ms", timeoutMs);
        transactional = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
        transactional.initTransactions();
    }

    private void describeTransactions(String id, String topic, ObjectNode answer) throws Exception {
        for (TransactionListing listed : wait(admin.listTransactions().all())) {
            if (listed.transactionalId().equals(id)) {
                answer.put("listed", listed.state().toString());
            }
        }
        TransactionDescription described = wait(admin.describeTransactions(List.of(id)).description(id));
        answer.put("state", described.state().toString()).put("timeout_ms", described.transactionTimeoutMs());
        ArrayNode partitions = answer.putArray("partitions");
        described.topicPartitions().stream().map(TopicPartition::partition).sorted().forEach(partitions::add);
        ObjectNode producers = answer.putObject("producers");
        int count = wait(admin.describeTopics(List.of(topic)).allTopicNames()).get(topic).partitions().size();
        for (int p = 0; p < count; p++) {
            TopicPartition partition = new TopicPartition(topic, p);
            ArrayNode begins = producers.putArray("" + p);
            wait(admin.describeProducers(List.of(partition)).partitionResult(partition)).activeProducers()
                    .forEach(producer -> begins.add(producer.currentTransactionStartOffset().orElse(-1)));
        }
    }

    // ---- topics

    private void create(String topic, int partitions, JsonNode configs) throws Exception {
        Map<String, String> entries = new HashMap<>();
        configs.fields().forEachRemaining(config -> entries.put(config.getKey(), config.getValue().asText()));
        NewTopic wanted = new NewTopic(topic, Optional.of(partitions), Optional.empty()).configs(entries);
        wait(admin.createTopics(List.of(wanted)).all());
    }

    private void partitions(String topic, ObjectNode answer) throws Exception {
        if (!wait(admin.listTopics().names()).contains(topic)) {
            answer.putNull("count");
            return;
        }
        answer.put("count", wait(admin.describeTopics(List.of(topic)).allTopicNames()).get(topic).partitions().size());
    }

    private void alter(String topic, JsonNode configs) throws Exception {
        List<AlterConfigOp> changes = new ArrayList<>();
        configs.fields().forEachRemaining(config -> {
            ConfigEntry entry = new ConfigEntry(config.getKey(), config.getValue().asText());
            changes.add(new AlterConfigOp(entry, AlterConfigOp.OpType.SET));
        });
        wait(admin.incrementalAlterConfigs(Map.of(resource(topic), changes)).all());
    }

    private String config(String topic, String name) throws Exception {
        return wait(admin.describeConfigs(List.of(resource(topic))).all()).get(resource(topic)).get(name).value();
    }

    private static ConfigResource resource(String topic) {
        return new ConfigResource(ConfigResource.Type.TOPIC, topic);
    }
}
