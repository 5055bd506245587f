//! A small Kafka client: one connection, requests of any version, answers in order.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, CreatePartitionsRequest, CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    FetchRequest, FetchResponse, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest,
    MetadataResponse, ProduceRequest, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::surroundings::{self, Stream};

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection is gone.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The answer does not decode, or is of another request.
    #[error("the answer makes no sense: {0}")]
    Answer(String),
    /// The broker answered with this error.
    #[error("the broker answered {0:?}")]
    Kafka(ResponseError),
    /// The broker did not answer in time.
    #[error("no answer in time")]
    TimedOut,
}

impl ClientError {
    /// Whether a client that keeps to Kafka's rules would try again.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Io(_) | Self::TimedOut => true,
            Self::Answer(_) => false,
            Self::Kafka(error) => error.is_retriable(),
        }
    }
}

/// A connection to one broker.
pub struct Client {
    socket: Box<dyn Stream>,
    /// What has arrived and is not yet a whole frame.
    incoming: BytesMut,
    next_id: i32,
    name: String,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The text of a protocol message.
pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A topic's name.
pub fn topic(name: &str) -> TopicName {
    TopicName(text(name))
}

fn check(code: i16) -> Result<(), ClientError> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => Err(ClientError::Kafka(error)),
    }
}

impl Client {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> Result<Self, ClientError> {
        let connecting = surroundings::connect(address);
        let socket = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| ClientError::TimedOut)??;
        let (name, timeout) = ("strandline-tests".to_owned(), Duration::from_mins(1));
        Ok(Self { socket, incoming: BytesMut::new(), next_id: 1, name, timeout })
    }

    /// Waits at most so long for an answer.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Names itself like this from now on.
    pub fn set_client_id(&mut self, id: &str) {
        id.clone_into(&mut self.name);
    }

    /// Sends bytes as they are. After a time-out the connection is of no use any more.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let sending = self.socket.write_all(bytes);
        Ok(timeout(self.timeout, sending).await.map_err(|_| ClientError::TimedOut)??)
    }

    /// Waits for the next frame. Cancellation-safe.
    pub async fn receive_raw(&mut self) -> Result<Bytes, ClientError> {
        let (socket, incoming) = (&mut self.socket, &mut self.incoming);
        let receive = async {
            loop {
                if let Some(length) = incoming.get(..4) {
                    let length = 4 + (&length[..]).get_i32().max(0) as usize;
                    if incoming.len() >= length {
                        let mut frame = incoming.split_to(length);
                        frame.advance(4);
                        return Ok(frame.freeze());
                    }
                    incoming.reserve(length - incoming.len());
                }
                if socket.read_buf(incoming).await? == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
            }
        };
        timeout(self.timeout, receive).await.map_err(|_| ClientError::TimedOut)?
    }

    /// Waits until the broker closes the connection; gives the bytes that came before that.
    pub async fn until_closed(&mut self) -> Result<Bytes, ClientError> {
        let (socket, incoming) = (&mut self.socket, &mut self.incoming);
        let receive = async {
            loop {
                match socket.read_buf(incoming).await {
                    Ok(0) => return Ok(()),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
            }
        };
        timeout(self.timeout, receive).await.map_err(|_| ClientError::TimedOut)??;
        Ok(self.incoming.split().freeze())
    }

    /// Sends a request and returns its correlation id.
    pub async fn send<R: Request>(&mut self, request: &R, version: i16) -> Result<i32, ClientError> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let frame = frame(request, version, id, &self.name);
        self.send_raw(&frame).await?;
        Ok(id)
    }

    /// Waits for the answer to the request of this correlation id, which must be the next.
    pub async fn receive<R: Request>(&mut self, id: i32, version: i16) -> Result<R::Response, ClientError> {
        let mut body = self.receive_raw().await?;
        let header = ResponseHeader::decode(&mut body, R::Response::header_version(version))
            .map_err(|e| ClientError::Answer(e.to_string()))?;
        if header.correlation_id != id {
            return Err(ClientError::Answer(format!("answer {} instead of {id}", header.correlation_id)));
        }
        let response =
            R::Response::decode(&mut body, version).map_err(|e| ClientError::Answer(e.to_string()))?;
        if body.has_remaining() {
            return Err(ClientError::Answer(format!("{} bytes are left over", body.remaining())));
        }
        Ok(response)
    }

    /// Sends a request and waits for its answer.
    pub async fn call<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response, ClientError> {
        let id = self.send(request, version).await?;
        self.receive::<R>(id, version).await
    }

    /// Creates a topic; that it exists already is no error.
    pub async fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<(), ClientError> {
        let configs = configs
            .iter()
            .map(|(k, v)| CreatableTopicConfig::default().with_name(text(k)).with_value(Some(text(v))))
            .collect();
        let wanted = CreatableTopic::default()
            .with_name(topic(name))
            .with_num_partitions(partitions)
            .with_replication_factor(-1)
            .with_configs(configs);
        let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(30_000);
        let response = self.call(&request, 7).await?;
        match check(response.topics[0].error_code) {
            Err(ClientError::Kafka(ResponseError::TopicAlreadyExists)) => Ok(()),
            other => other,
        }
    }

    /// Gives a topic more partitions: so many in all.
    pub async fn add_partitions(&mut self, name: &str, partitions: i32) -> Result<(), ClientError> {
        let grown = CreatePartitionsTopic::default().with_name(topic(name)).with_count(partitions);
        let request = CreatePartitionsRequest::default().with_topics(vec![grown]).with_timeout_ms(10_000);
        let response = self.call(&request, 3).await?;
        check(response.results[0].error_code)
    }

    /// Deletes a topic.
    pub async fn delete_topic(&mut self, name: &str) -> Result<(), ClientError> {
        let request =
            DeleteTopicsRequest::default().with_topic_names(vec![topic(name)]).with_timeout_ms(30_000);
        let response = self.call(&request, 5).await?;
        check(response.responses[0].error_code)
    }

    /// Metadata of some topics.
    pub async fn metadata(&mut self, topics: &[&str]) -> Result<MetadataResponse, ClientError> {
        let topics = topics
            .iter()
            .map(|name| {
                kafka_protocol::messages::metadata_request::MetadataRequestTopic::default()
                    .with_name(Some(topic(name)))
            })
            .collect();
        let request =
            MetadataRequest::default().with_topics(Some(topics)).with_allow_auto_topic_creation(false);
        self.call(&request, 12).await
    }

    /// A producer id.
    pub async fn init_producer_id(&mut self) -> Result<i64, ClientError> {
        let request =
            InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(1000);
        let response = self.call(&request, 4).await?;
        check(response.error_code)?;
        Ok(response.producer_id.0)
    }

    /// Produces one batch to one partition with `acks=all`; gives its base offset.
    pub async fn produce(&mut self, name: &str, partition: i32, batch: Bytes) -> Result<i64, ClientError> {
        let request = produce_request(name, &[(partition, batch)], -1);
        let response = self.call(&request, 9).await?;
        let partition = &response.responses[0].partition_responses[0];
        check(partition.error_code)?;
        Ok(partition.base_offset)
    }

    /// Fetches from one partition: high watermark and records.
    pub async fn fetch(
        &mut self,
        name: &str,
        partition: i32,
        offset: i64,
        max_wait_ms: i32,
    ) -> Result<(i64, Bytes), ClientError> {
        let request = fetch_request(name, &[(partition, offset)], max_wait_ms, 16 << 20);
        let response: FetchResponse = self.call(&request, 12).await?;
        check(response.error_code)?;
        let partition = &response.responses[0].partitions[0];
        check(partition.error_code)?;
        Ok((partition.high_watermark, partition.records.clone().unwrap_or_default()))
    }

    /// Deletes the records of a partition before an offset; gives where it starts then.
    pub async fn delete_records(
        &mut self,
        name: &str,
        partition: i32,
        before: i64,
    ) -> Result<i64, ClientError> {
        let asked = DeleteRecordsPartition::default().with_partition_index(partition).with_offset(before);
        let topics = vec![DeleteRecordsTopic::default().with_name(topic(name)).with_partitions(vec![asked])];
        let request = DeleteRecordsRequest::default().with_topics(topics).with_timeout_ms(10_000);
        let response = self.call(&request, 2).await?;
        let partition = &response.topics[0].partitions[0];
        check(partition.error_code)?;
        Ok(partition.low_watermark)
    }

    /// The offset for a timestamp (−1 latest, −2 earliest).
    pub async fn list_offset(
        &mut self,
        name: &str,
        partition: i32,
        timestamp: i64,
    ) -> Result<i64, ClientError> {
        let asked = ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(timestamp);
        let topics = vec![ListOffsetsTopic::default().with_name(topic(name)).with_partitions(vec![asked])];
        let response = self.call(&ListOffsetsRequest::default().with_topics(topics), 7).await?;
        let partition = &response.topics[0].partitions[0];
        check(partition.error_code)?;
        Ok(partition.offset)
    }
}

/// A produce request for one topic.
pub fn produce_request(name: &str, batches: &[(i32, Bytes)], acks: i16) -> ProduceRequest {
    let data = batches
        .iter()
        .map(|(partition, batch)| {
            PartitionProduceData::default().with_index(*partition).with_records(Some(batch.clone()))
        })
        .collect();
    let topics = vec![TopicProduceData::default().with_name(topic(name)).with_partition_data(data)];
    ProduceRequest::default().with_acks(acks).with_timeout_ms(30_000).with_topic_data(topics)
}

/// A full fetch of some partitions of one topic, without a session.
pub fn fetch_request(
    name: &str,
    partitions: &[(i32, i64)],
    max_wait_ms: i32,
    max_bytes: i32,
) -> FetchRequest {
    let partitions = partitions
        .iter()
        .map(|(partition, offset)| {
            FetchPartition::default()
                .with_partition(*partition)
                .with_fetch_offset(*offset)
                .with_partition_max_bytes(max_bytes)
                .with_current_leader_epoch(-1)
        })
        .collect();
    FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(max_bytes)
        .with_session_epoch(-1)
        .with_topics(vec![FetchTopic::default().with_topic(topic(name)).with_partitions(partitions)])
}

/// The bytes of a request, length included.
pub fn frame<R: Request>(request: &R, version: i16, correlation_id: i32, client_id: &str) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(0);
    let api = ApiKey::try_from(R::KEY).expect("a known api");
    RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(text(client_id)))
        .encode(&mut out, api.request_header_version(version))
        .expect("a request header encodes");
    request.encode(&mut out, version).expect("a request of a test encodes");
    let length = (out.len() - 4) as i32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}
