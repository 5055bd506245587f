import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Apache Kafka's own client with its defaults: idempotence and acks=all. Files as common.py describes them. */
public final class Client {
    private static final int PARTITIONS = 3;
    private static final int RECORDS = 300;
    private static final int LARGE_BYTES = 900_000;

    private interface Action {
        void run() throws Exception;
    }

    private record Sent(byte[] key, byte[] value, Headers headers, Future<RecordMetadata> future) {}

    public static void main(String[] args) throws Exception {
        String mode = args[0];
        String bootstrap = args[1];
        if (mode.equals("agent")) {
            Agent.serve(bootstrap, args[2]);
            System.exit(0);
        }
        String clientId = "java,zone=" + args[2];
        Path folder = Path.of(args[3]);
        switch (mode) {
            case "produce" -> {
                for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
                    String topic = "java-" + codec;
                    attempt("java produces " + codec, () -> note(folder, topic, produce(bootstrap, clientId, topic, codec)));
                }
            }
            case "verify" -> {
                List<Path> files;
                try (Stream<Path> found = Files.list(folder)) {
                    files = found.filter(p -> p.toString().endsWith(".tsv")).sorted().toList();
                }
                for (Path file : files) {
                    String topic = file.getFileName().toString().replace(".tsv", "");
                    List<String> expected = Files.readAllLines(file);
                    String what = "java reads " + topic + " (" + expected.size() + " records)";
                    attempt(what, () -> compare(topic, expected, read(bootstrap, clientId, topic, expected)));
                }
            }
            default -> {
                Path stop = Path.of(args[4]);
                String topic = "java-load" + System.getenv().getOrDefault("STRANDLINE_TOPIC_SUFFIX", "");
                attempt("java produces under load", () -> note(folder, topic, load(bootstrap, clientId, topic, stop)));
            }
        }
        System.exit(0);
    }

    private static void attempt(String what, Action action) {
        try {
            action.run();
            System.out.println("PASS " + what);
        } catch (Exception | AssertionError error) {
            error.printStackTrace(System.out);
            System.out.println("FAIL " + what + ": " + error);
        }
    }

    private static KafkaProducer<byte[], byte[]> producer(String bootstrap, String clientId, String codec) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        settings.put("client.id", clientId);
        settings.put("compression.type", codec);
        return new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private static List<String> produce(String bootstrap, String clientId, String topic, String codec) throws Exception {
        Random random = new Random(topic.hashCode());
        List<Sent> sent = new ArrayList<>();
        try (KafkaProducer<byte[], byte[]> producer = producer(bootstrap, clientId, codec)) {
            for (int i = 0; i < RECORDS; i++) {
                byte[] key = i % 7 == 0 ? null : ("key-" + i % 20).getBytes(StandardCharsets.UTF_8);
                byte[] value = null;
                if (i % 11 != 0 || i == RECORDS / 2) {
                    value = new byte[i == RECORDS / 2 ? LARGE_BYTES : random.nextInt(400)];
                    random.nextBytes(value);
                }
                ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(topic, key, value);
                if (i % 3 == 0) {
                    record.headers().add("number", String.valueOf(i).getBytes(StandardCharsets.UTF_8));
                    record.headers().add("null", null).add("empty", new byte[0]);
                }
                sent.add(new Sent(key, value, record.headers(), producer.send(record)));
            }
            return answered(sent);
        }
    }

    private static List<String> load(String bootstrap, String clientId, String topic, Path stop) throws Exception {
        List<Sent> sent = new ArrayList<>();
        try (KafkaProducer<byte[], byte[]> producer = producer(bootstrap, clientId, "none")) {
            for (int i = 0; !Files.exists(stop); i++) {
                byte[] key = String.valueOf(i % 50).getBytes(StandardCharsets.UTF_8);
                byte[] value = ("value " + i).getBytes(StandardCharsets.UTF_8);
                ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(topic, key, value);
                sent.add(new Sent(key, value, record.headers(), producer.send(record)));
                if (i % 20 == 0) {
                    Thread.sleep(20);
                }
            }
            return answered(sent);
        }
    }

    private static List<String> answered(List<Sent> sent) throws Exception {
        List<String> lines = new ArrayList<>();
        Map<Integer, Long> last = new HashMap<>();
        for (Sent record : sent) {
            RecordMetadata at = record.future().get(150, TimeUnit.SECONDS);
            Long before = last.put(at.partition(), at.offset());
            if (before != null && before >= at.offset()) {
                throw new AssertionError("offset " + at.offset() + " was given after " + before);
            }
            lines.add(line(at.partition(), at.offset(), at.timestamp(), record.key(), record.value(), record.headers()));
        }
        return lines;
    }

    private static List<String> read(String bootstrap, String clientId, String topic, List<String> expected) {
        Map<Integer, Long> ends = new HashMap<>();
        for (String line : expected) {
            String[] fields = line.split("\t", 3);
            ends.put(Integer.valueOf(fields[0]), Long.parseLong(fields[1]) + 1);
        }
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        settings.put("client.id", clientId);
        List<String> got = new ArrayList<>();
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions =
                    IntStream.range(0, PARTITIONS).mapToObj(p -> new TopicPartition(topic, p)).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            long until = System.nanoTime() + TimeUnit.SECONDS.toNanos(90);
            while (partitions.stream().anyMatch(p -> consumer.position(p) < ends.getOrDefault(p.partition(), 0L))) {
                if (System.nanoTime() > until) {
                    throw new AssertionError(topic + ": " + got.size() + " records read: not in time");
                }
                for (ConsumerRecord<byte[], byte[]> r : consumer.poll(Duration.ofMillis(500))) {
                    got.add(line(r.partition(), r.offset(), r.timestamp(), r.key(), r.value(), r.headers()));
                }
            }
        }
        return got;
    }

    private static String text(byte[] bytes) {
        return bytes == null ? "-" : Base64.getEncoder().encodeToString(bytes);
    }

    private static String line(int partition, long offset, long timestamp, byte[] key, byte[] value, Headers headers) {
        String named = Arrays.stream(headers.toArray()).map(Client::named).collect(Collectors.joining(","));
        return String.join("\t", "" + partition, "" + offset, "" + timestamp, text(key), text(value), named);
    }

    private static String named(Header header) {
        return header.key() + "=" + text(header.value());
    }

    private static List<String> sorted(List<String> lines) {
        Comparator<String> place = Comparator.comparingLong(l -> Long.parseLong(l.split("\t", 3)[0]));
        return lines.stream().sorted(place.thenComparingLong(l -> Long.parseLong(l.split("\t", 3)[1]))).toList();
    }

    private static void note(Path folder, String topic, List<String> lines) throws IOException {
        Files.write(folder.resolve(topic + ".tsv"), sorted(lines));
    }

    private static void compare(String topic, List<String> expected, List<String> unsorted) {
        List<String> got = sorted(unsorted);
        for (int i = 0; i < Math.min(expected.size(), got.size()); i++) {
            String[] want = expected.get(i).split("\t", -1);
            String[] have = got.get(i).split("\t", -1);
            if (want[2].equals("*")) {
                have[2] = "*";
            }
            if (!Arrays.equals(want, have)) {
                throw new AssertionError(topic + ": " + cut(got.get(i)) + " instead of " + cut(expected.get(i)));
            }
        }
        if (expected.size() != got.size()) {
            throw new AssertionError(topic + ": " + got.size() + " records instead of " + expected.size());
        }
    }

    private static String cut(String line) {
        return line.substring(0, Math.min(160, line.length()));
    }
}
