import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLongArray;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * How long a group takes to read all partitions again after a member came, and after one died.
 *
 * <p>All members but one are threads of this process; the one that comes and dies is a process of its own, killed as
 * with -9. Every partition gets a record twice a second. Prints lines of "arrival SECONDS" and "death SECONDS".
 *
 * <pre>Rebalance BOOTSTRAP classic|consumer MEMBERS PARTITIONS ROUNDS</pre>
 */
public final class Rebalance {
  private static volatile boolean stopping;

  public static void main(String[] args) throws Exception {
    if (args[0].equals("member")) {
      member(args[1], args[2], args[3]);
      return;
    }
    String bootstrap = args[0];
    String protocol = args[1];
    int members = Integer.parseInt(args[2]);
    int partitions = Integer.parseInt(args[3]);
    String topic = "rebalance-" + protocol + "-" + System.nanoTime();
    create(bootstrap, topic, partitions);
    // The newest time of production of a record that was read, by partition.
    AtomicLongArray newest = new AtomicLongArray(partitions);
    Thread producer = new Thread(() -> produce(bootstrap, topic, partitions));
    producer.start();
    List<Thread> threads = new ArrayList<>();
    for (int i = 1; i < members; i++) {
      Thread thread = new Thread(() -> consume(bootstrap, protocol, topic, newest, null));
      threads.add(thread);
      thread.start();
    }
    waitForAll(newest, System.currentTimeMillis(), 180);
    for (int round = 0; round < Integer.parseInt(args[4]); round++) {
      Thread.sleep(8000);
      Child child = new Child(bootstrap, protocol, topic, newest);
      child.subscribed.await();
      long came = System.currentTimeMillis();
      child.assigned.await();
      waitForAll(newest, System.currentTimeMillis(), 120);
      System.out.printf("arrival %.3f%n", (System.currentTimeMillis() - came) / 1000.0);
      Thread.sleep(8000);
      long died = System.currentTimeMillis();
      child.process.destroyForcibly().waitFor();
      waitForAll(newest, died, 120);
      System.out.printf("death %.3f%n", (System.currentTimeMillis() - died) / 1000.0);
    }
    stopping = true;
    producer.join();
    for (Thread thread : threads) {
      thread.join();
    }
    System.exit(0);
  }

  /** The member that is a process of its own: tells what it does in lines. */
  private static void member(String bootstrap, String protocol, String topic) {
    consume(bootstrap, protocol, topic, null, System.out::println);
  }

  private static final class Child {
    final Process process;
    final CountDownLatch subscribed = new CountDownLatch(1);
    final CountDownLatch assigned = new CountDownLatch(1);

    Child(String bootstrap, String protocol, String topic, AtomicLongArray newest) throws Exception {
      String java = System.getProperty("java.home") + "/bin/java";
      String path = System.getProperty("java.class.path");
      process =
          new ProcessBuilder(
                  java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", path, "Rebalance", "member", bootstrap, protocol, topic)
              .redirectError(ProcessBuilder.Redirect.DISCARD)
              .start();
      Thread reader = new Thread(() -> read(newest));
      reader.setDaemon(true);
      reader.start();
    }

    private void read(AtomicLongArray newest) {
      try (BufferedReader lines = new BufferedReader(new InputStreamReader(process.getInputStream()))) {
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
          String[] words = line.split(" ");
          switch (words[0]) {
            case "subscribing" -> subscribed.countDown();
            case "assigned" -> assigned.countDown();
            case "read" -> newest.accumulateAndGet(Integer.parseInt(words[1]), Long.parseLong(words[2]), Math::max);
            default -> {}
          }
        }
      } catch (java.io.IOException ended) {
        // It was killed.
      }
    }
  }

  private static void consume(
      String bootstrap, String protocol, String topic, AtomicLongArray newest, java.util.function.Consumer<String> tell) {
    Properties settings = new Properties();
    settings.put("bootstrap.servers", bootstrap);
    settings.put("group.id", topic);
    settings.put("group.protocol", protocol);
    settings.put("auto.offset.reset", "latest");
    settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
    settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
    if (protocol.equals("classic")) {
      settings.put("session.timeout.ms", "6000");
      settings.put("heartbeat.interval.ms", "1000");
    }
    try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
      if (tell != null) {
        tell.accept("subscribing");
      }
      consumer.subscribe(
          Collections.singleton(topic),
          new ConsumerRebalanceListener() {
            @Override
            public void onPartitionsRevoked(Collection<TopicPartition> revoked) {}

            @Override
            public void onPartitionsAssigned(Collection<TopicPartition> assigned) {
              if (tell != null && !assigned.isEmpty()) {
                tell.accept("assigned");
              }
            }
          });
      while (!stopping) {
        for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
          if (tell != null) {
            tell.accept("read " + record.partition() + " " + record.timestamp());
          } else {
            newest.accumulateAndGet(record.partition(), record.timestamp(), Math::max);
          }
        }
      }
    }
  }

  private static void produce(String bootstrap, String topic, int partitions) {
    Map<String, Object> settings =
        Map.of(
            "bootstrap.servers", bootstrap, "linger.ms", "20",
            "key.serializer", ByteArraySerializer.class.getName(),
            "value.serializer", ByteArraySerializer.class.getName());
    try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings)) {
      while (!stopping) {
        long until = System.currentTimeMillis() + 500;
        for (int partition = 0; partition < partitions; partition++) {
          producer.send(new ProducerRecord<>(topic, partition, null, new byte[10]));
        }
        producer.flush();
        Thread.sleep(Math.max(0, until - System.currentTimeMillis()));
      }
    } catch (InterruptedException ended) {
      Thread.currentThread().interrupt();
    }
  }

  private static void create(String bootstrap, String topic, int partitions) throws Exception {
    try (Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap))) {
      admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1))).all().get();
      Thread.sleep(2000);
    }
  }

  /** Waits until a record that was produced after this time was read of every partition. */
  private static void waitForAll(AtomicLongArray newest, long after, int seconds) throws InterruptedException {
    long until = System.currentTimeMillis() + seconds * 1000L;
    int partition = 0;
    while (partition < newest.length()) {
      if (newest.get(partition) > after) {
        partition++;
      } else if (System.currentTimeMillis() > until) {
        throw new IllegalStateException("partition " + partition + " is not read");
      } else {
        Thread.sleep(5);
      }
    }
  }
}
