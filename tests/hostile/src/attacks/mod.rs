//! The kinds of hostile clients. Each goes on until it is dropped, and notices nothing of what
//! becomes of it: an error only means that it connects again.

mod connections;
mod fetches;
mod names;
mod records;

use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use kafka_protocol::messages::CreateTopicsRequest;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError, topic};
use strandline_tests::cluster::Cluster;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::sleep;

/// A topic of many partitions, with nothing in it.
const WIDE: &str = "wide";
const WIDE_PARTITIONS: i32 = 10_000;
/// A topic with more in it than the broker caches: batches of a megabyte.
const LARGE: &str = "large";
const LARGE_PARTITIONS: i32 = 8;
/// A topic with one small batch that inflates to [`BOMB_BYTES`].
const BOMB: &str = "bomb";
const BOMB_BYTES: usize = 127 << 20;
/// A topic in which nothing ever happens.
const QUIET: &str = "quiet";

/// A pause before a hostile client connects again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a hostile client waits for an answer that it wants.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where to press.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where the broker takes Kafka clients.
    address: String,
    /// Where it serves HTTP.
    http_address: String,
}

/// One kind of hostile client.
#[derive(Debug)]
pub struct Attack {
    /// What it is called.
    pub name: &'static str,
    /// How many of them press at the same time.
    pub clients: usize,
    /// What the one of this number does until it is dropped.
    run: fn(Target, usize) -> LocalBoxFuture<'static, ()>,
}

/// Every kind.
pub const ATTACKS: &[Attack] = &[
    Attack { name: "many-partitions", clients: 2, run: |t, n| Box::pin(records::many_partitions(t, n)) },
    Attack { name: "pinned-frames", clients: 4, run: |t, n| Box::pin(records::pinned_frames(t, n)) },
    Attack { name: "made-up-producers", clients: 2, run: |t, n| Box::pin(records::made_up_producers(t, n)) },
    Attack { name: "recompression", clients: 2, run: |t, n| Box::pin(records::recompression(t, n)) },
    Attack { name: "bombs", clients: 4, run: |t, n| Box::pin(records::bombs(t, n)) },
    Attack { name: "long-names", clients: 2, run: |t, n| Box::pin(fetches::long_names(t, n)) },
    Attack { name: "fetched-twice", clients: 2, run: |t, n| Box::pin(fetches::fetched_twice(t, n)) },
    Attack { name: "sessions", clients: 4, run: |t, n| Box::pin(fetches::sessions(t, n)) },
    Attack { name: "never-read", clients: 20, run: |t, n| Box::pin(fetches::never_read(t, n)) },
    Attack { name: "behind-a-long-poll", clients: 20, run: |t, n| Box::pin(names::behind_a_long_poll(t, n)) },
    Attack { name: "metadata-twice", clients: 2, run: |t, n| Box::pin(names::metadata_twice(t, n)) },
    Attack { name: "names-of-nobody", clients: 40, run: |t, n| Box::pin(names::names_of_nobody(t, n)) },
    Attack { name: "configs-twice", clients: 2, run: |t, n| Box::pin(names::configs_twice(t, n)) },
    Attack { name: "offsets-twice", clients: 2, run: |t, n| Box::pin(names::offsets_twice(t, n)) },
    Attack { name: "groups-twice", clients: 2, run: |t, n| Box::pin(names::groups_twice(t, n)) },
    Attack { name: "patterns", clients: 4, run: |t, n| Box::pin(names::patterns(t, n)) },
    Attack { name: "huge-topics", clients: 1, run: |t, n| Box::pin(names::huge_topics(t, n)) },
    Attack { name: "half-frames", clients: 8, run: |t, n| Box::pin(connections::half_frames(t, n)) },
    Attack {
        name: "half-behind-join",
        clients: 4,
        run: |t, n| Box::pin(connections::half_behind_join(t, n)),
    },
    Attack { name: "closed-joins", clients: 2, run: |t, n| Box::pin(connections::closed_joins(t, n)) },
    Attack { name: "come-and-go", clients: 4, run: |t, n| Box::pin(connections::come_and_go(t, n)) },
    Attack { name: "garbage", clients: 4, run: |t, n| Box::pin(connections::garbage(t, n)) },
    Attack { name: "dripping-http", clients: 80, run: |t, n| Box::pin(connections::dripping_http(t, n)) },
];

/// Kinds that leave much behind for good, in etcd or in the state: producers, topics, groups,
/// records.
const LASTING: &[&str] =
    &["many-partitions", "made-up-producers", "recompression", "groups-twice", "patterns", "huge-topics"];

impl Attack {
    /// Whether what it does is over with its last byte, but for a few records.
    pub fn is_passing(&self) -> bool {
        !LASTING.contains(&self.name)
    }
}

impl Target {
    /// Broker `i`, which is reached without a proxy.
    pub fn of(cluster: &Cluster, i: usize) -> Self {
        Self { address: cluster.direct_address(i), http_address: cluster.http_address(i) }
    }

    /// Makes the topics that the attacks press on, with so many megabytes to read.
    pub async fn prepare(&self, megabytes: usize) {
        let mut client = self.connect().await.expect("a running broker takes connections");
        for (name, partitions) in [(WIDE, WIDE_PARTITIONS), (LARGE, LARGE_PARTITIONS), (BOMB, 1), (QUIET, 1)]
        {
            create(&mut client, name, partitions).await.expect("a topic is created");
        }
        let noise: Vec<u8> =
            (0..1_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for number in 0..megabytes {
            let record = batch(&[&noise], now_ms(), None, Compression::None);
            let partition = number as i32 % LARGE_PARTITIONS;
            client.produce(LARGE, partition, record).await.expect("a large batch is written");
        }
        client.produce(BOMB, 0, bomb()).await.expect("a small batch is written");
    }

    async fn connect(&self) -> Result<Client, ClientError> {
        let mut client = Client::connect(&self.address).await?;
        client.set_client_id("hostile");
        client.set_timeout(PATIENCE);
        Ok(client)
    }

    /// Connects, does this, and does it all again, for ever.
    async fn again(&self, mut once: impl AsyncFnMut(&mut Client) -> Result<(), ClientError>) {
        loop {
            if let Ok(mut client) = self.connect().await {
                // What went wrong is of no interest: it is what was wanted.
                let _ = once(&mut client).await;
            }
            sleep(AGAIN).await;
        }
    }
}

/// A batch that inflates to far more than it is.
fn bomb() -> Bytes {
    batch(&[vec![0_u8; BOMB_BYTES]], now_ms(), None, Compression::Zstd)
}

async fn create(client: &mut Client, name: &str, partitions: i32) -> Result<(), ClientError> {
    let wanted = CreatableTopic::default()
        .with_name(topic(name))
        .with_num_partitions(partitions)
        .with_replication_factor(-1);
    let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(30_000);
    client.call(&request, 7).await.map(drop)
}

/// How much less of the processors the attackers' thread gets, as `nice` counts: what they compute
/// to attack is nobody's fault who is attacked. Elsewhere they would have machines of their own.
const NICENESS: i32 = 15;

/// Attacks that are under way, on a thread of their own.
#[derive(Debug)]
pub struct Press {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Press {
    /// Starts every client of these attacks.
    pub fn start(target: &Target, attacks: &[&'static Attack]) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (target, attacks) = (target.clone(), attacks.to_vec());
        let thread = std::thread::spawn(move || {
            // On Linux it is the thread's own.
            let _ = rustix::process::nice(NICENESS);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let clients = LocalSet::new();
            for attack in attacks {
                for number in 0..attack.clients {
                    clients.spawn_local((attack.run)(target.clone(), number));
                }
            }
            let pressing = clients.run_until(async { stopped.await.unwrap_or_default() });
            runtime.expect("a runtime starts").block_on(pressing);
            // The clients are dropped with all that they hold, as those of a process that was
            // killed.
        });
        Self { stop, thread }
    }

    /// Ends them where they stand.
    pub async fn end(self) {
        // It ends by itself if its receiver is gone.
        let _ = self.stop.send(());
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        joined.expect("the waiting ends").expect("no attack panics");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_the_name_of_an_attack() {
        assert!(LASTING.iter().all(|name| ATTACKS.iter().any(|attack| attack.name == *name)));
    }
}
