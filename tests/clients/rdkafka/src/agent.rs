//! rdkafka as an agent: requests as agent.py describes them.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{BufRead, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use serde_json::{Map, Value, json};

const PATIENCE: Duration = Duration::from_secs(50);

/// Answers requests until the input ends.
pub async fn serve(bootstrap: &str, client_id: &str) {
    let mut agent = Agent::new(bootstrap, client_id);
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line.expect("requests are text")).expect("a request is JSON");
        let answer = agent.obey(&request).await.unwrap_or_else(|error| json!({"error": error}));
        let mut out = std::io::stdout();
        writeln!(out, "{answer}").and_then(|()| out.flush()).expect("somebody listens");
    }
}

/// What was given and taken since the last poll.
#[derive(Default)]
struct Events(Mutex<Vec<Value>>);

impl Events {
    fn note(&self, what: &str, partitions: &TopicPartitionList) {
        let numbers: Vec<i32> = partitions.elements().iter().map(|p| p.partition()).collect();
        self.0.lock().expect("nobody panics").push(json!([what, numbers]));
    }

    fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.0.lock().expect("nobody panics"))
    }
}

impl ClientContext for Events {
    /// Only asked for by STRANDLINE_CLIENT_DEBUG.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        eprintln!("{}.{:03} {facility} {message}", now.as_secs(), now.subsec_millis());
    }
}

impl ConsumerContext for Events {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance {
            self.note("revoked", partitions);
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = rebalance {
            self.note("assigned", partitions);
        }
    }
}

struct Agent {
    common: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
    producers: HashMap<String, FutureProducer>,
    transactional: Option<FutureProducer>,
    consumer: Option<BaseConsumer<Events>>,
    topic: String,
}

type Answer = Result<Value, String>;

fn why(error: impl Display) -> String {
    error.to_string()
}

impl Agent {
    fn new(bootstrap: &str, client_id: &str) -> Self {
        let mut common = ClientConfig::new();
        common.set("bootstrap.servers", bootstrap).set("client.id", client_id);
        let admin = common.create().expect("an admin client");
        let producers = HashMap::new();
        Self { common, admin, producers, transactional: None, consumer: None, topic: String::new() }
    }

    async fn obey(&mut self, request: &Value) -> Answer {
        let topic = request["topic"].as_str().unwrap_or_default();
        let name = request["name"].as_str().unwrap_or_default();
        let partition = request["partition"].as_i64().unwrap_or_default() as i32;
        match request["do"].as_str().unwrap_or_default() {
            // Its AlterConfigs drops the errors of the resources.
            "hello" => Ok(json!({"lacks": ["alter-errors"]})),
            "send" => self.send(topic, request["codec"].as_str().unwrap_or("none"), &request["records"]).await,
            "open" => {
                let (group, reset) = (&request["group"], &request["reset"]);
                let (group, reset) = (group.as_str().unwrap_or_default(), reset.as_str().unwrap_or_default());
                self.open(topic, group, reset, request["isolation"].as_str())
            }
            "poll" => self.poll(Duration::from_millis(request["ms"].as_u64().unwrap_or(100))),
            "commit" => self.commit(&request["offsets"]),
            "committed" => self.committed(&request["partitions"]),
            "pause" => done(self.consumer()?.pause(&self.one(partition))),
            "resume" => done(self.consumer()?.resume(&self.one(partition))),
            "seek" => {
                let offset = Offset::Offset(request["offset"].as_i64().unwrap_or_default());
                done(self.consumer()?.seek(&self.topic, partition, offset, PATIENCE))
            }
            "times" => self.times(request["timestamp"].as_i64().unwrap_or_default()),
            "close" => {
                // Dropping it leaves the group.
                self.consumer = None;
                Ok(json!({}))
            }
            "create" => self.create(topic, &request["partitions"], &request["configs"]).await,
            "partitions" => self.partitions(topic),
            "grow" => {
                let count = request["count"].as_u64().unwrap_or_default() as usize;
                let wanted = [NewPartitions::new(topic, count)];
                first(self.admin.create_partitions(&wanted, &AdminOptions::new()).await)
            }
            "delete" => first(self.admin.delete_topics(&[topic], &AdminOptions::new()).await),
            "alter" => self.alter(topic, &request["configs"]).await,
            "config" => self.config(topic, name).await,
            "init_transactions" => self.init_transactions(&request["id"], &request["timeout_ms"]),
            "begin_transaction" => done(self.transactional()?.begin_transaction()),
            "add_offsets" => {
                let offsets = self.positions(&request["offsets"])?;
                let member = self.consumer()?.group_metadata().ok_or("it is in no group")?;
                done(self.transactional()?.send_offsets_to_transaction(&offsets, &member, PATIENCE))
            }
            "end_transaction" if request["commit"] == true => done(self.transactional()?.commit_transaction(PATIENCE)),
            "end_transaction" => done(self.transactional()?.abort_transaction(PATIENCE)),
            "describe_transactions" => Ok(json!({"lacks": "describe-transactions"})),
            _ => Err(format!("{request} is no request")),
        }
    }

    fn consumer(&self) -> Result<&BaseConsumer<Events>, String> {
        self.consumer.as_ref().ok_or_else(|| "nothing is open".to_owned())
    }

    fn one(&self, partition: i32) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        list
    }

    fn transactional(&self) -> Result<&FutureProducer, String> {
        self.transactional.as_ref().ok_or_else(|| "it has no transactional id".to_owned())
    }

    fn init_transactions(&mut self, id: &Value, timeout_ms: &Value) -> Answer {
        let mut config = self.common.clone();
        config.set("transactional.id", id.as_str().unwrap_or_default());
        config.set("transaction.timeout.ms", timeout_ms.to_string());
        self.transactional = Some(config.create().map_err(why)?);
        done(self.transactional()?.init_transactions(PATIENCE))
    }

    async fn send(&mut self, topic: &str, codec: &str, records: &Value) -> Answer {
        let producer = self.transactional.as_ref().unwrap_or_else(|| {
            self.producers.entry(codec.to_owned()).or_insert_with(|| {
                let mut config = self.common.clone();
                // The broker is to refuse what is too large, not the client.
                config.set("message.max.bytes", "5000000").set("enable.idempotence", "true");
                config.set("compression.type", codec).create().expect("a producer")
            })
        });
        let mut deliveries = Vec::new();
        for r in records.as_array().into_iter().flatten() {
            let (key, value) = (bytes(&r["k"]), bytes(&r["v"]));
            let mut headers = OwnedHeaders::new();
            for pair in r["h"].as_array().into_iter().flatten() {
                let data = bytes(&pair[1]);
                headers = headers.insert(Header { key: pair[0].as_str().unwrap_or_default(), value: data.as_ref() });
            }
            let mut record = FutureRecord::to(topic).headers(headers);
            record.key = key.as_ref();
            record.payload = value.as_ref();
            record.partition = r["p"].as_i64().map(|p| p as i32);
            record.timestamp = r["t"].as_i64();
            deliveries.push(producer.send_result(record).map_err(|(error, _)| error));
        }
        let mut sent = Vec::new();
        for delivery in deliveries {
            sent.push(match delivery {
                Err(error) => json!(why(error)),
                Ok(delivery) => match delivery.await.map_err(why)? {
                    Ok(at) => json!([at.partition, at.offset]),
                    Err((error, _)) => json!(why(error)),
                },
            });
        }
        Ok(json!({"sent": sent}))
    }

    fn open(&mut self, topic: &str, group: &str, reset: &str, isolation: Option<&str>) -> Answer {
        let mut config = self.common.clone();
        let reset = if reset == "none" { "error" } else { reset };
        config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", reset);
        config.set("fetch.wait.max.ms", "100");
        if let Some(isolation) = isolation {
            config.set("isolation.level", isolation);
        }
        if let Ok(what) = std::env::var("STRANDLINE_CLIENT_DEBUG") {
            config.set("debug", what).set_log_level(RDKafkaLogLevel::Debug);
        }
        if std::env::var("STRANDLINE_GROUP_PROTOCOL").as_deref() == Ok("consumer") {
            config.set("group.protocol", "consumer");
        } else {
            config.set("session.timeout.ms", "6000").set("heartbeat.interval.ms", "1000");
        }
        let consumer: BaseConsumer<Events> = config.create_with_context(Events::default()).map_err(why)?;
        consumer.subscribe(&[topic]).map_err(why)?;
        self.topic = topic.to_owned();
        self.consumer = Some(consumer);
        Ok(json!({}))
    }

    fn poll(&self, wait: Duration) -> Answer {
        let consumer = self.consumer()?;
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        let until = Instant::now() + wait;
        while records.len() < 500 {
            // What is there already is taken along, but not waited for.
            let left = if records.is_empty() { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            match consumer.poll(left) {
                None if left.is_zero() || Instant::now() >= until => break,
                None => {}
                Some(Ok(message)) => records.push(record(&message)),
                // A broker that is away is not the application's business.
                Some(Err(error)) if transient(&error) => {}
                Some(Err(error)) => errors.push(why(error)),
            }
        }
        Ok(json!({"records": records, "errors": errors, "events": consumer.context().take()}))
    }

    fn commit(&self, offsets: &Value) -> Answer {
        done(self.consumer()?.commit(&self.positions(offsets)?, CommitMode::Sync))
    }

    fn positions(&self, offsets: &Value) -> Result<TopicPartitionList, String> {
        let mut wanted = TopicPartitionList::new();
        for (partition, offset) in offsets.as_object().into_iter().flatten() {
            let offset = Offset::Offset(offset.as_i64().unwrap_or_default());
            wanted.add_partition_offset(&self.topic, partition.parse().map_err(why)?, offset).map_err(why)?;
        }
        Ok(wanted)
    }

    fn committed(&self, partitions: &Value) -> Answer {
        let mut asked = TopicPartitionList::new();
        for partition in partitions.as_array().into_iter().flatten() {
            asked.add_partition(&self.topic, partition.as_i64().unwrap_or_default() as i32);
        }
        let found = self.consumer()?.committed_offsets(asked, PATIENCE).map_err(why)?;
        Ok(json!({"offsets": by_partition(&found, json!(-1))}))
    }

    fn times(&self, timestamp: i64) -> Answer {
        let mut asked = TopicPartitionList::new();
        for at in self.consumer()?.assignment().map_err(why)?.elements() {
            asked.add_partition_offset(&self.topic, at.partition(), Offset::Offset(timestamp)).map_err(why)?;
        }
        let found = self.consumer()?.offsets_for_times(asked, PATIENCE).map_err(why)?;
        Ok(json!({"offsets": by_partition(&found, Value::Null)}))
    }

    async fn create(&self, topic: &str, partitions: &Value, configs: &Value) -> Answer {
        let count = partitions.as_i64().unwrap_or_default() as i32;
        let mut wanted = NewTopic::new(topic, count, TopicReplication::Fixed(-1));
        for (name, value) in configs.as_object().into_iter().flatten() {
            wanted = wanted.set(name, value.as_str().unwrap_or_default());
        }
        first(self.admin.create_topics(&[wanted], &AdminOptions::new()).await)
    }

    fn partitions(&self, topic: &str) -> Answer {
        let found = self.admin.inner().fetch_metadata(None, PATIENCE).map_err(why)?;
        let count = found.topics().iter().find(|t| t.name() == topic).map(|t| t.partitions().len());
        Ok(json!({"count": count}))
    }

    async fn alter(&self, topic: &str, configs: &Value) -> Answer {
        let mut wanted = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (name, value) in configs.as_object().into_iter().flatten() {
            wanted = wanted.set(name, value.as_str().unwrap_or_default());
        }
        let altered = self.admin.alter_configs(&[wanted], &AdminOptions::new()).await.map_err(why)?;
        altered[0].as_ref().map(|_| json!({})).map_err(|(_, error)| why(error))
    }

    async fn config(&self, topic: &str, name: &str) -> Answer {
        let asked = [ResourceSpecifier::Topic(topic)];
        let found = self.admin.describe_configs(asked.iter(), &AdminOptions::new()).await.map_err(why)?;
        let resource = found[0].as_ref().map_err(why)?;
        Ok(json!({"value": resource.get(name).and_then(|entry| entry.value.clone())}))
    }
}

fn done(result: KafkaResult<()>) -> Answer {
    result.map(|()| json!({})).map_err(why)
}

/// How it went with the one topic that was asked for.
fn first(results: KafkaResult<Vec<Result<String, (String, RDKafkaErrorCode)>>>) -> Answer {
    match results.map_err(why)?.pop() {
        Some(Err((topic, code))) => Err(format!("{topic}: {code}")),
        _ => Ok(json!({})),
    }
}

fn transient(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown)
    )
}

fn by_partition(list: &TopicPartitionList, nothing: Value) -> Map<String, Value> {
    let of = |offset| if let Offset::Offset(offset) = offset { json!(offset) } else { nothing.clone() };
    list.elements().iter().map(|at| (at.partition().to_string(), of(at.offset()))).collect()
}

fn bytes(text: &Value) -> Option<Vec<u8>> {
    text.as_str().map(|text| BASE64.decode(text).expect("bytes are in base64"))
}

fn text(bytes: Option<&[u8]>) -> Value {
    bytes.map_or(Value::Null, |bytes| json!(BASE64.encode(bytes)))
}

fn record(message: &BorrowedMessage<'_>) -> Value {
    let headers: Vec<Value> = message
        .headers()
        .map(|headers| headers.iter().map(|h| json!([h.key, text(h.value)])).collect())
        .unwrap_or_default();
    json!({
        "p": message.partition(), "o": message.offset(), "t": message.timestamp().to_millis(),
        "k": text(message.key()), "v": text(message.payload()), "h": headers,
    })
}
