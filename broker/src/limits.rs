//! Every limit of the broker that is not a setting, with its derivation and the relations between
//! them.

use std::time::Duration;

use strandline_metadata::limits::{BACKEND_REQUEST_BYTES, RECORD_BYTES};
use strandline_storage::limits::{MAX_MERGED_BYTES, MAX_SEGMENT_RANGES};

// The door: what one connection may cost (server/).

/// Requests of one connection that are being handled. A client that pipelines more waits at its
/// socket.
pub(crate) const REQUESTS_IN_FLIGHT: usize = 64;
/// Answers of one connection that may wait to be written before its next request is read, in bytes.
/// One more answer may be ready for each request that was in flight by then; the memory of all
/// connections together bounds those.
pub(crate) const CONNECTION_REPLY_BYTES: usize = 4 * 1024 * 1024;
/// Who reserves memory that all share gets at most this share of what is left but for the last
/// part: with 256 MiB the first one gets 56, the tenth 4. So clients that read slowly leave
/// something to those that come later.
pub(crate) const MEMORY_GRANT_SHARE: usize = 4;
/// The last part of such memory, of which nobody is granted more than the least that it asks for:
/// of 256 MiB the least of 512 fetches, and the largest fetch still gets all that it may have.
pub(crate) const LAST_MEMORY_SHARE: usize = 8;
/// Percent of such memory that the connections from one address hold together at most, unless they
/// hold it with a single request: the last quarter is always left to others.
pub(crate) const ADDRESS_MEMORY_PERCENT: usize = 75;
/// Percent of it that those connections of an address hold together that hold more than a little:
/// the rest of the share is for those that hold no more than that. Whoever reads nothing needs some
/// hundred connections to take that, too.
pub(crate) const LARGE_HOLDERS_PERCENT: usize = 60;
/// What is a little.
pub(crate) const SMALL_HOLDING_BYTES: usize = LEAST_FETCH_BYTES;
/// A fetch waits until it may have this much, which is about what a first batch has.
pub(crate) const LEAST_FETCH_BYTES: usize = 64 * 1024;
/// A fetch whose first range is larger reserves up to so much for it, since its first batch comes
/// whole: Kafka's default for the largest batch.
pub(crate) const FIRST_BATCH_BYTES: usize = 1024 * 1024;
/// A reply whose size is not known yet counts so much while it is built: most are smaller.
pub(crate) const LEAST_REPLY_BYTES: usize = 16 * 1024;
/// Pieces that one vectored write hands to the kernel.
pub(crate) const PIECES_PER_WRITE: usize = 256;
/// Disconnect a client that reads nothing of its responses for this long.
pub(crate) const STUCK_WRITER: Duration = Duration::from_mins(1);
/// A request that has begun may pause this long.
pub(crate) const ARRIVAL_GRACE: Duration = Duration::from_secs(30);
/// But for the pauses it must arrive at this rate, in bytes per second.
pub(crate) const ARRIVAL_BYTES_PER_S: usize = 32 * 1024;
/// While others wait for memory, whoever holds much of it may pause only this long. Five seconds
/// are what recovery from hostile clients may take.
pub(crate) const CONTENDED_GRACE: Duration = Duration::from_secs(5);
/// And must arrive at this rate: at it, a request of 100 MiB takes as long as a client waits for an
/// answer by default.
pub(crate) const CONTENDED_ARRIVAL_BYTES_PER_S: usize = 1024 * 1024;
/// While others wait for memory, responses must be read at this rate, in bytes per second.
pub(crate) const DEPARTURE_BYTES_PER_S: usize = 32 * 1024;
/// How often whoever holds much memory looks whether others wait for it.
pub(crate) const CONTENTION_CHECK: Duration = Duration::from_secs(1);
/// A request that takes no more than this share of the memory for large requests need not hurry:
/// 3 MiB of 192.
pub(crate) const PATIENT_FRAME_SHARE: usize = 64;
/// Requests up to this length have memory of their own, in which none waits for larger ones: what
/// clients send but for records is hardly ever larger.
pub(crate) const SMALL_FRAME_BYTES: usize = 64 * 1024;
/// How much of the memory for requests that is, in percent.
pub(crate) const SMALL_FRAMES_PERCENT: usize = 25;
/// A connection whose requests that are being handled hold this share of the memory starts no
/// other.
pub(crate) const CONNECTION_REQUEST_SHARE: usize = 8;
/// What a frame's buffer starts with; larger frames grow into larger buffers. It is not taken from
/// the shared memory: the number of connections bounds it. So much of the next request is read
/// ahead while no other one may be started, to see whether the client has gone.
pub(crate) const FIRST_FRAME_BYTES: usize = 4 * 1024;
/// A buffer that is full grows by this factor, as far as the frame goes: so a frame holds at most
/// so many times the memory of what has arrived.
pub(crate) const FRAME_GROWTH: usize = 16;
/// A request header cannot be shorter: api key, version, correlation id.
pub(crate) const LEAST_FRAME_BYTES: usize = 8;
/// Connections that wait to be accepted.
pub(crate) const BACKLOG: u32 = 1024;
/// Pause after accepting failed, for example because file descriptors ran out.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(LEAST_FRAME_BYTES < FIRST_FRAME_BYTES && FIRST_FRAME_BYTES < SMALL_FRAME_BYTES);
const _: () = assert!(LEAST_REPLY_BYTES <= LEAST_FETCH_BYTES && LEAST_FETCH_BYTES <= FIRST_BATCH_BYTES);
const _: () = assert!(FIRST_BATCH_BYTES < CONNECTION_REPLY_BYTES && MEMORY_GRANT_SHARE > 1);
const _: () = assert!(ADDRESS_MEMORY_PERCENT < 100 && SMALL_FRAMES_PERCENT < 100);
const _: () = assert!(LARGE_HOLDERS_PERCENT < ADDRESS_MEMORY_PERCENT);
const _: () = assert!(CONTENTION_CHECK.as_millis() < CONTENDED_GRACE.as_millis());
const _: () = assert!(CONTENDED_GRACE.as_millis() < ARRIVAL_GRACE.as_millis());

// What one request may cost before its handler has seen it (api/shape).

/// Memory that the structs of a decoded request may take for each byte of its frame. The most that
/// an honest element asks for are 30: a group whose id has one letter, all of whose offsets are
/// wanted, takes four bytes and decodes to a struct of 120.
pub(crate) const DECODED_PER_FRAME_BYTE: usize = 32;
/// Memory on top of that, so that a short request may carry a tagged field or two that this broker
/// does not know.
pub(crate) const DECODED_FREE_BYTES: usize = 16 * 1024;
/// Memory that the structs of a decoded request may take at all: a fetch of 700,000 partitions.
/// What takes more than [`LARGE_REQUEST_BYTES`], or [`LARGE_FETCH_BYTES`], is memory of a budget
/// that all connections share.
pub(crate) const DECODED_MAX_BYTES: usize = 64 * 1024 * 1024;
/// What a tagged field that is not known takes once decoded: it is kept in a map whose nodes have
/// room for eleven, and nearly always it is the only one.
pub(crate) const TAGGED_FIELD_BYTES: usize = 512;

const _: () = assert!(DECODED_FREE_BYTES >= 16 * TAGGED_FIELD_BYTES);
const _: () = assert!(DECODED_FREE_BYTES < DECODED_MAX_BYTES / 1024);

// Computing: compute.

/// Batches that are opened at a time to find a record by its time. Each may take
/// [`MAX_PAYLOAD_BYTES`], in memory and to be read through: about 0.2 s.
pub(crate) const LOOKUPS_AT_ONCE: usize = 2;
/// Large requests that are decoded, and large responses that are encoded, at a time.
pub(crate) const FRAMES_AT_ONCE: usize = 2;
/// Large answers that are built at a time: metadata of 200,000 partitions take 50 MB before they
/// are encoded.
pub(crate) const LARGE_ANSWERS_AT_ONCE: usize = 2;
/// A request whose structs and texts have more bytes is decoded beside the connections' threads:
/// filling and reading through so much takes about a tenth of a millisecond. Records are not looked
/// at then, and do not count.
pub(crate) const BRIEF_REQUEST_BYTES: usize = 256 * 1024;
/// A request whose structs take more memory than this waits until no other such request of its
/// connection is being answered, as all requests do in Kafka.
pub(crate) const LARGE_REQUEST_BYTES: usize = 1024 * 1024;
/// What the batches of one request may become that are compressed anew, since their topics want
/// another codec: a hundred times what a Java producer sends by default.
pub(crate) const GROWN_PER_REQUEST_BYTES: usize = 64 * 1024 * 1024;
/// Requests of which this is so at a time.
pub(crate) const GROWING_AT_ONCE: usize = 2;
/// Bytes of what a client may call its software, and of that's version (KIP-511).
pub(crate) const SOFTWARE_TEXT_BYTES: usize = 255;
/// Names that are compared in a unit of work, when a topic is created.
pub(crate) const NAMES_PER_UNIT: usize = 10;
/// The same for a fetch, which may wait for a minute: 700 partitions.
pub(crate) const LARGE_FETCH_BYTES: usize = 64 * 1024;
/// A response for which more was done, in units of a turn, is encoded beside the connections'
/// threads: about four thousand partitions.
pub(crate) const LARGE_ANSWER_UNITS: usize = 16 * 1024;
/// What a partition, a config or a member costs in a response, built and encoded, in units of a
/// turn.
pub(crate) const UNITS_PER_ELEMENT: usize = 4;
/// What a partition costs that is committed or looked up in its group, in units of a turn: a
/// microsecond.
pub(crate) const UNITS_PER_COMMIT: usize = 10;
/// An answer of committed offsets that has more bytes than this is a large one, however few
/// partitions it has: each may have 4 KiB of metadata.
pub(crate) const LARGE_GROUPS_ANSWER_BYTES: usize = 1024 * 1024;
/// Requests for descriptions of groups that are answered at a time: each holds what one response
/// may have, and the descriptions that are asked for at once.
pub(crate) const DESCRIPTIONS_AT_ONCE: usize = 2;
/// What one response has of several groups, in bytes: the offsets of 200,000 partitions without
/// metadata, or the members of the ten largest groups that there may be. Groups beyond it are to be
/// asked again, and a single group is always answered.
pub(crate) const GROUPS_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a group's description that a unit of work takes.
pub(crate) const DESCRIBED_BYTES_PER_UNIT: usize = 100;
/// What a partition has in such an answer beside its metadata.
pub(crate) const OFFSETS_ANSWER_PARTITION_BYTES: usize = 24;
/// An answer of more elements than this is a large one, of which few are built at a time.
pub(crate) const LARGE_ANSWER_ELEMENTS: usize = LARGE_ANSWER_UNITS / UNITS_PER_ELEMENT;
/// Groups that one request asks at a time: each that is not known here yet is read from etcd.
pub(crate) const GROUPS_ASKED_AT_ONCE: usize = 16;
/// Configs that one response of DescribeConfigs has: those of 8,000 topics. Resources beyond them
/// are refused: names of groups may be made up, and each has configs.
pub(crate) const DESCRIBED_CONFIGS: usize = 300_000;
/// Configs that most resources have, about.
pub(crate) const CONFIGS_OF_A_RESOURCE: usize = 40;
/// Looking records up by their time may take one request this long: within Kafka's default
/// `request.timeout.ms` of 30 s, so that a client hears of it.
pub(crate) const LOOKUPS_FOR: Duration = Duration::from_secs(20);
/// Partitions of one request that are looked up at once: each may be a round trip to the store, and
/// holds a range of an object meanwhile.
pub(crate) const LOOKUPS_PER_REQUEST: usize = 4;

// Writing: produce/ and api/produce.

/// Unit in which the produce buffer's space is counted, in bytes: permits are 32 bits, bytes may be
/// more.
pub(crate) const BUFFER_UNIT: usize = 1024;
/// What an entry of the buffer takes beside its batch, in bytes: its own description and those in
/// the request's answer, in the commit record and in the object's index.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 512;
/// Entries of one flush, a request's surplus goes into the next. Each may be a partition of its
/// own: so many fit into an object by far, and into five records of the log.
pub(crate) const FLUSH_ENTRIES: usize = 32 * 1024;
/// What checking an entry costs beside its bytes, in units of a turn.
pub(crate) const UNITS_PER_ENTRY: usize = 10;
/// Bytes of a batch that are checked in one unit of a turn: its checksum, and the lengths of its
/// records.
pub(crate) const BYTES_PER_UNIT: usize = 512;
/// What laying one partition out in an object costs, in units of a turn: about three microseconds.
pub(crate) const UNITS_PER_RANGE: usize = 25;
/// Entries of one produce request that are written at a time: as many as fit into one record of the
/// log. What it has beyond them takes turns with what others have to write.
pub(crate) const REQUEST_PART_ENTRIES: usize = 4 * 1024;
/// No produce waits longer than this, whatever it asks for.
pub(crate) const PRODUCE_MAX_WAIT: Duration = Duration::from_mins(2);

const _: () = assert!(FLUSH_ENTRIES <= MAX_SEGMENT_RANGES, "a flush fits into an object");
const _: () = assert!(REQUEST_PART_ENTRIES <= FLUSH_ENTRIES);

// Reading: fetch/ and api/fetch.

/// No fetch waits longer than this, whatever it asks for.
pub(crate) const FETCH_MAX_WAIT: Duration = Duration::from_mins(1);
/// Blocks of objects that one fetch reads at the same time. With 60 ms to the store and records of
/// many partitions in each object, two seconds are enough for 2,000 objects.
pub(crate) const FETCH_READS_AT_ONCE: usize = 64;
/// Ranges of one fetch that are read at all. What else was asked for is for the next fetch, in
/// which the client or its session puts it first.
pub(crate) const FETCH_RANGES: usize = 20_000;
/// A fetch is answered so long after its wait, with what has been read by then: a partition that
/// gets little lies in very many objects, and clients give up what takes them longer.
pub(crate) const FETCH_READS_FOR: Duration = Duration::from_secs(2);
/// Bytes of records whose checksums are looked at before others have their turn: at some GB/s, half
/// a millisecond.
pub(crate) const CHECKED_IN_ONE_GO_BYTES: u64 = 2 * 1024 * 1024;
/// Fetches whose reads go on after they were answered.
pub(crate) const FETCHES_READ_ON: usize = 64;
/// Blocks that are read ahead for one fetch.
pub(crate) const READ_AHEAD_BLOCKS: usize = 16;
/// Batches up to this size are copied behind their patched header: cheaper than another piece to
/// send.
pub(crate) const COPIED_BATCH_BYTES: usize = 1024;
/// Ranges of a partition that count as its tail: whoever reads there is not catching up.
pub(crate) const TAIL_RANGES: usize = 64;
/// Ranges that one fetch plans to read, of all its partitions: the answer ends before them, or the
/// time for reading does.
pub(crate) const PLANNED_RANGES: usize = 16 * 1024;
/// Ranges of them that one partition has: more than are read in the time that there is.
pub(crate) const PLANNED_RANGES_PER_PARTITION: usize = 1024;
/// Ends of transactions that a fetch returns of a partition beside records.
pub(crate) const PLANNED_MARKERS: usize = 1_000;
/// Aborted transactions that a fetch names of a partition: it returns no more than goes with them.
pub(crate) const ABORTED_PER_PARTITION: usize = 1_000;
/// Aborted transactions that a fetch names of all partitions, 16 bytes each; the others have their
/// turn in the next one.
pub(crate) const ABORTED_PER_FETCH: usize = 20_000;
/// What a partition of a fetch takes while the fetch waits, in bytes: what is wanted of it, and its
/// places among those that wait.
pub(crate) const WAITING_PARTITION_BYTES: usize = 320;
/// A fetch that waits gets at most this share of what is left of the memory for that.
pub(crate) const WAITING_MEMORY_SHARE: usize = 4;
/// A fetch of so few partitions may always wait: the number of connections bounds these.
pub(crate) const WAITING_FREE_PARTITIONS: usize = 16;
/// A fetch for whose waiting there is no memory is answered after this, with what there is then.
pub(crate) const FETCH_SHORT_WAIT: Duration = Duration::from_millis(100);
/// A fetch of more partitions than this does not look at all of them whenever one has moved: it
/// rests before, for this long for each of them.
pub(crate) const RESTING_PARTITIONS: usize = 1_000;
pub(crate) const REST_PER_PARTITION: Duration = Duration::from_nanos(500);
/// What looking at a partition for a fetch costs, in units of a turn.
pub(crate) const UNITS_PER_LOOK: usize = 3;
/// A fetch session that was used more recently than this is not evicted for a new one.
pub(crate) const FETCH_SESSION_KEPT: Duration = Duration::from_mins(2);
/// Partitions of one fetch session: more than a broker can serve, and a bound all the same.
pub(crate) const FETCH_SESSION_PARTITIONS: usize = 100_000;
/// What a partition of a fetch session takes beside the name of its topic, in bytes.
pub(crate) const FETCH_SESSION_PARTITION_BYTES: usize = 200;
/// The most that the payload of one batch may become when it is decompressed, in bytes.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 128 << 20;
/// Decompressed records pass by in pieces of this size: two blocks of snappy, one of LZ4.
pub(crate) const OPENED_PIECE_BYTES: usize = 64 << 10;
/// A batch that is not compressed is compressed beside the connections' threads from this size on:
/// less takes less than a millisecond. What is compressed may inflate to anything, so it is always
/// opened there.
pub(crate) const OPENED_APART_BYTES: usize = 64 << 10;
/// Batches that are opened at a time on such threads: as many as there are processors on a small
/// machine, since each only computes.
pub(crate) const BATCHES_OPENED_AT_ONCE: usize = 2;
/// Of all time, one part in so many may be spent on opening compressed batches whose header is only
/// doubted: 5 % of one processor, so that producers whose batches begin and end in the same
/// millisecond lose no more than that.
pub(crate) const DOUBTED_SHARE: u32 = 20;
/// How much of that time can be saved up: some hundred megabytes of LZ4, a second of a busy topic.
pub(crate) const DOUBTED_SAVED: Duration = Duration::from_millis(200);
/// Single records of a batch that are named when it is refused, about 150 bytes each.
pub(crate) const RECORD_ERRORS_PER_PARTITION: usize = 100;
/// The same over all batches of a request.
pub(crate) const RECORD_ERRORS_PER_RESPONSE: usize = 1_000;

// Groups: group/.

/// Commands that wait for one group: whoever floods it waits, and others do not notice.
pub(crate) const GROUP_COMMANDS: usize = 1_024;
/// Groups that are read at a time when nobody waits for one of them: after a broker was lost there
/// may be thousands.
pub(crate) const GROUP_LOADS_PER_SWEEP: usize = 100;
/// How often every group is looked at.
pub(crate) const GROUP_SWEEP: Duration = Duration::from_millis(500);
/// Characters of what a member says that are logged: as many as Kafka's own clients send of a
/// reason.
pub(crate) const MAX_LOGGED_CHARS: usize = 255;
/// Commands that are taken in before something is written.
pub(crate) const STEPS_PER_WRITE: usize = 1_000;
/// How fast the value of one group may be written: a large group that reconciles would otherwise be
/// written whole for each of its members, into etcd and through every broker's watch. What comes
/// meanwhile shares the next write.
pub(crate) const GROUP_PUT_BYTES_PER_S: u32 = 2_000_000;
/// Requests of one group that may wait for the store.
pub(crate) const GROUP_WAITING: usize = 4_096;
/// Bytes of offsets that one transaction of a group writes, about. With the names of their keys and
/// the group they fit into a request; a single key may have more.
pub(crate) const GROUP_OFFSETS_BYTES_PER_TXN: usize = 600_000;
/// Bytes of offsets that are written in the same transaction as the group itself.
pub(crate) const OFFSETS_BYTES_BESIDE_GROUP: usize = 50_000;
/// A timer that rings so late means that this process stood still: members' heartbeats may wait in
/// its sockets, so they are heard before anybody is given up.
pub(crate) const LATE_TIMER: Duration = Duration::from_millis(500);
/// Bytes of metadata that the committed offsets of one key may have together: the value must fit
/// into one request to etcd.
pub(crate) const OFFSETS_KEY_METADATA_BYTES: usize = 600_000;
/// A member that joins for the first time is given up if the rebalance that it waits for takes
/// longer: a client without time-outs of its own may be gone.
pub(crate) const NEW_MEMBER_JOIN: Duration = Duration::from_mins(5);
/// Protocols that a classic member may name. Kafka's own clients name one or two; those of all
/// members are compared when one joins.
pub(crate) const MEMBER_PROTOCOLS: usize = 100;
/// Bytes of metadata that a member may have: the group must fit into one key.
pub(crate) const MEMBER_METADATA_BYTES: usize = 256 * 1024;
/// Bytes of metadata that the members of a group may have together, as it is stored: etcd takes 1.5
/// MiB. Whoever is too much is refused, so that those who are in it do not suffer.
pub(crate) const GROUP_MEMBERS_BYTES: usize = 800_000;
/// The same with the members' assignments.
pub(crate) const GROUP_VALUE_BYTES: usize = 1_300_000;
/// Bytes that the members of a group of KIP-848 may have together as they are stored, with what
/// they read. What is left of a request is for what a newcomer is to read.
pub(crate) const CONSUMER_MEMBERS_BYTES: usize = 1_200_000;
/// Bytes that are stored of a classic member beside its texts, metadata and assignment, at most.
pub(crate) const CLASSIC_MEMBER_OVERHEAD_BYTES: usize = 180;
/// Bytes that are stored of a member of KIP-848 beside its texts, subscription and assignments, at
/// most.
pub(crate) const CONSUMER_MEMBER_OVERHEAD_BYTES: usize = 410;
/// Bytes of a group instance id: as many characters as Kafka's clients take, which are ASCII.
pub(crate) const INSTANCE_ID_BYTES: usize = 249;
/// Bytes of any other text that a group keeps of a member: its client id, rack, assignor, or the
/// name of a protocol. A member's texts are kept several times, and are part of the group's value.
pub(crate) const MEMBER_TEXT_BYTES: usize = 1_024;
/// Bytes of a member id, which is made of a client id or an instance id and a UUID.
pub(crate) const MEMBER_ID_BYTES: usize = MEMBER_TEXT_BYTES + 64;
/// What each assignment of a SyncGroup counts beside its bytes: those of members that do not exist
/// are dropped, and take memory until then.
pub(crate) const ASSIGNMENT_OVERHEAD_BYTES: usize = 32;
/// Bytes of memory that a compiled pattern may take, so that no client fills the broker's with one
/// (invariant 9).
pub(crate) const PATTERN_BYTES: usize = 128 << 10;
/// Different patterns that the members of one group may have: each is compiled and looked at
/// whenever a topic is created. Members of a group nearly always have the same one.
pub(crate) const GROUP_PATTERNS: usize = 10;
/// Patterns of which it is remembered what they match. The one that was not asked for longest gives
/// way.
pub(crate) const MATCHED_PATTERNS: usize = 1_000;
/// Bytes of the patterns and the names of topics that are remembered with them, about: five
/// patterns that match all of 100,000 topics. The last one stays, whatever it matches.
pub(crate) const MATCHED_PATTERNS_BYTES: usize = 64 << 20;
/// What a name in a set takes beside its bytes, about.
pub(crate) const MATCHED_NAME_OVERHEAD_BYTES: usize = 64;
/// Names that are matched with a pattern in one piece of work: a hostile pattern may take
/// milliseconds for each.
pub(crate) const NAMES_MATCHED_AT_ONCE: usize = 64;
/// Characters that a pattern may have.
pub(crate) const PATTERN_CHARS: usize = 4 << 10;

// Administration: api/, configs, topics.

/// Partitions of one page of DescribeTopicPartitions, whatever the request asks for; Kafka's own
/// default.
pub(crate) const DESCRIBED_PARTITIONS_PER_PAGE: usize = 2_000;
/// Partitions that one request may create, as in Kafka.
pub(crate) const CREATED_PARTITIONS_PER_REQUEST: u64 = 10_000;
/// How often a deletion is tried when the topic is changed by others at the same time.
pub(crate) const DELETE_TOPIC_ATTEMPTS: usize = 10;
/// Producer ids in a block. What is left of a block when its broker ends is never handed out.
pub(crate) const PRODUCER_ID_BLOCK: i64 = 1_000;
/// How often a block is tried for when other brokers take theirs at the same time.
pub(crate) const PRODUCER_ID_ATTEMPTS: usize = 10;
/// The longest topic name, as in Kafka, in bytes.
pub(crate) const TOPIC_NAME_BYTES: usize = 249;
/// Topics that one request may create by naming them: a client that names a hundred thousand must
/// not fill the metadata store before anybody can stop it. Whoever needs more asks again, as
/// clients do for topics that they do not find.
pub(crate) const TOPICS_CREATED_BY_NAMING: usize = 500;
/// Characters that the name of a client-metrics resource may have.
pub(crate) const CONFIG_RESOURCE_NAME_CHARS: usize = 249;
/// Bytes that the value of a config may have.
pub(crate) const CONFIG_VALUE_BYTES: usize = 4 * 1024;
/// Client-metrics resources that there may be: every client that asks is matched against all of
/// them.
pub(crate) const CLIENT_METRICS_RESOURCES: usize = 100;
/// Groups that may have configs of their own.
pub(crate) const GROUP_CONFIG_RESOURCES: usize = 10_000;

// Telemetry and metrics.

/// Numbers that are kept of what all clients push. Whoever was heard of least recently gives way.
pub(crate) const TELEMETRY_SERIES: usize = 2_000;
/// Numbers that are kept of one client.
pub(crate) const TELEMETRY_SERIES_PER_CLIENT: usize = 500;
/// Prefixes in one subscription to client metrics.
pub(crate) const SUBSCRIPTION_PREFIXES: usize = 200;
/// Characters of one such prefix.
pub(crate) const SUBSCRIPTION_PREFIX_CHARS: usize = 256;
/// The largest metric that a client pushes, with all of its data points, in bytes.
pub(crate) const PUSHED_METRIC_BYTES: usize = 256 << 10;
/// Characters of a text that a client pushes.
pub(crate) const PUSHED_TEXT_CHARS: usize = 128;
/// Attributes of a pushed number that are shown.
pub(crate) const PUSHED_ATTRIBUTES: usize = 8;
/// Clients that are remembered, as many as Kafka does. One that is forgotten may ask again at once.
pub(crate) const TELEMETRY_INSTANCES: usize = 16_384;
/// The most that a client may push at once, as it is sent, in bytes.
pub(crate) const MAX_PUSH_BYTES: usize = 1 << 20;
/// The same, once decompressed.
pub(crate) const MAX_DECOMPRESSED_PUSH_BYTES: usize = 8 << 20;
/// Partitions that get a lag of their own (invariant 9). When there are more, topics get one; when
/// those are too many as well, only groups do.
pub(crate) const GROUP_LAG_SERIES: usize = 5_000;
/// Topics that get metrics of their own; the others share the label `other` (invariant 9).
pub(crate) const TOPIC_LABELS: usize = 1_000;
/// Kinds of client software that get a label of their own.
pub(crate) const SOFTWARE_LABELS: usize = 200;
/// File descriptors that everything but the clients' connections may need: listeners, etcd, the
/// store, the runtime.
pub(crate) const DESCRIPTORS_OF_OTHERS: u64 = 256;
/// Connections to the port of the metrics, out of these.
pub(crate) const HTTP_CONNECTIONS: usize = 64;

// Background work: jobs/, fsck/, run, membership.

/// Partitions that one Trim record names.
pub(crate) const TRIMMED_PARTITIONS_PER_RECORD: usize = 1_000;
/// A clock further than this from the median of the others' decides nothing, in ms.
pub(crate) const MAX_SKEW_MS: i64 = 30_000;
/// What was heard of other brokers' clocks longer ago than this is no evidence any more. Meanwhile
/// the monotonic clock tells of jumps of this broker's own.
pub(crate) const CLOCK_EVIDENCE_FRESH: Duration = Duration::from_hours(24);
/// How many of its own registrations a broker remembers, so as not to take what it wrote itself for
/// another's clock. A record is applied seconds after it was written.
pub(crate) const OWN_INCARNATIONS: usize = 64;
/// A broker that begins to run the jobs looks at retention after so long, as Kafka's brokers do,
/// unless the interval is shorter.
pub(crate) const FIRST_RETENTION_LOOK: Duration = Duration::from_secs(30);
/// Orphans stay for so long after a start that found something odd: an operator has time to look.
pub(crate) const ORPHANS_AFTER_ODDITY: Duration = Duration::from_hours(1);
/// How often etcd is asked how full it is.
pub(crate) const SPACE_POLL: Duration = Duration::from_secs(10);
/// Percent of etcd's quota in use from which its history is kept short and the log is trimmed soon.
pub(crate) const SPACE_SHORT_PERCENT: u64 = 60;
/// Percent of etcd's quota in use from which producers are slowed.
pub(crate) const SPACE_SLOW_PERCENT: u64 = 80;
/// Percent of etcd's quota in use from which there are no new groups, and those that exist commit
/// for no more partitions and with no longer metadata than they have.
pub(crate) const SPACE_CLOSED_PERCENT: u64 = 90;
/// Percent of etcd's quota in use at which producers are slowed the most.
pub(crate) const SPACE_FULL_PERCENT: u64 = 95;
/// The longest pause between two flushes of a broker while etcd is nearly full: it still writes an
/// object a second, so that producers are slowed and not refused.
pub(crate) const SPACE_LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Producers that one ProducersExpired record names.
pub(crate) const EXPIRED_PRODUCERS_PER_RECORD: usize = 5_000;
/// Producers that are watched at a time; others wait for their turn (invariant 9).
pub(crate) const WATCHED_PRODUCERS: usize = 1_000_000;
/// Silence after which producers are forgotten while the state has room for few more: a client that
/// is still sending a batch again has given up long before.
pub(crate) const PRESSED_PRODUCER_EXPIRATION: Duration = Duration::from_mins(15);
/// How long a budget of PUTs that is not spent is saved by default.
pub(crate) const PUT_SAVINGS: Duration = Duration::from_hours(1);
/// A flush counts as one more PUT for each so many partitions: an hour's savings of 4/s then leave
/// at most a million ranges in the state.
pub(crate) const PARTITIONS_PER_PUT: usize = 64;
/// Just below the limit of ranges in the state a flush waits for so many lingers after the one
/// before.
pub(crate) const GROWTH_LINGERS: u32 = 10;
/// Most bytes of a merged object: one PUT.
pub(crate) const MERGED_OBJECT_BYTES: u64 = 64 << 20;
/// Ranges of level 1 that a partition has at most before they are merged. More of them are fewer
/// ranges above, and more GETs, since each lies in an object of its own: with 80, a partition of 10
/// KiB/s has 126 of a week above, and at most 240 flushes of an interval below.
pub(crate) const LEVEL_1_RANGES: usize = 80;
/// How often partitions are looked at for the age of what is in level 1.
pub(crate) const LEVEL_1_LOOK: Duration = Duration::from_mins(30);
/// After so many looks what is in level 1 is merged, however little it is: it keeps objects alive
/// that it shares with others.
pub(crate) const LEVEL_1_LOOKS: usize = 4;
/// Ranges that one takes the place of at most: they are hashed and compared in `apply`.
pub(crate) const MERGE_INPUTS: usize = 4_096;
/// Partitions of one merged object: its record is a single one, of about 75 bytes each.
pub(crate) const MERGED_PARTITIONS_PER_OBJECT: usize = 2_048;
/// The records of a merged range lie apart by no more than this part of `retention.ms`, since they
/// expire together, and of `max.compaction.lag.ms`, since they are compacted together.
pub(crate) const MERGE_SPAN_PART: i64 = 8;
/// They may always lie apart by so much, in ms: else a topic with `segment.ms=1` would keep a range
/// for every flush.
pub(crate) const LEAST_SPAN_MS: i64 = 60_000;
/// Objects that a merge reads from at a time.
pub(crate) const MERGE_READS_AT_ONCE: usize = 8;
/// The longest pause between two merges: more than the largest object takes at the smallest budget.
pub(crate) const MERGE_LONGEST_PAUSE: Duration = Duration::from_hours(48);
/// What log compaction reads of small ranges in one go, in bytes: it looks at no more at a time
/// beside the threads of the connections.
pub(crate) const COMPACTION_READ_BYTES: u64 = 8 << 20;
/// That much of a partition is compacted as soon as it is dirty enough, in bytes. Less waits, since
/// every compaction costs a PUT.
pub(crate) const COMPACTED_AT_ONCE_BYTES: u64 = 1 << 20;
/// For how long less of it waits at most; `segment.ms` if that is less.
pub(crate) const COMPACTION_REST: Duration = Duration::from_hours(1);
/// For how long a merge leaves a range alone that cannot be read.
pub(crate) const UNREADABLE_REST: Duration = Duration::from_mins(10);
/// Such ranges that are remembered, about 60 bytes each.
pub(crate) const UNREADABLE_RANGES: usize = 10_000;
/// A pass of merging or compaction ends once so many objects in a row could not be read: the store
/// is down then. Fewer are left alone.
pub(crate) const SILENT_OBJECTS: usize = 8;
/// Of a merged range that is larger, a fetch or a look-up reads only the part that it needs, in
/// bytes. To find it costs a look at the object's index.
pub(crate) const NARROWED_RANGE_BYTES: u64 = 2 << 20;
/// What a look-up by time reads of a merged range at a time, in bytes.
pub(crate) const LOOKUP_SPAN_BYTES: u64 = 4 << 20;
/// Objects that one pass deletes: at a pass every 5 s, far more than brokers write.
pub(crate) const OBJECTS_DELETED_PER_PASS: usize = 10_000;
/// Deleted objects of one record of the log, about 25 bytes each.
pub(crate) const OBJECTS_PER_RECORD: usize = 5_000;
/// Keys of one LIST when orphans are looked for.
pub(crate) const ORPHAN_LIST_PAGE: usize = 1_000;
/// Objects of this broker that nothing refers to and that the store has not deleted yet. More wait
/// until the broker has ended.
pub(crate) const UNWANTED_OBJECTS: usize = 10_000;
/// How many of them are deleted at a time.
pub(crate) const UNWANTED_AT_ONCE: usize = 100;
/// How long they wait after the store has not deleted one of them.
pub(crate) const UNWANTED_REST: Duration = Duration::from_mins(1);
/// Passes over the dead list between two listings of the bucket: a listing costs requests.
pub(crate) const PASSES_PER_ORPHAN_LISTING: u32 = 720;
/// An audit reads an object up to this size with one request, in bytes.
pub(crate) const FSCK_READ_BYTES: u64 = 32 << 20;
/// Objects that an audit reads at a time.
pub(crate) const FSCK_READS: usize = 4;
/// Keys of one LIST of an audit.
pub(crate) const FSCK_LIST_PAGE: usize = 1_000;
/// Topics of which an audit shows what they take, the largest.
pub(crate) const FSCK_TOPICS: usize = 200;
/// Findings of an audit that are kept with their text; further ones are counted.
pub(crate) const FSCK_FINDINGS: usize = 1_000;
/// How long a broker waits for its own registration to be usable before it is opened anyway.
pub(crate) const REGISTER_WAIT: Duration = Duration::from_secs(30);
/// Time for other brokers to hear that this one is leaving, before it turns clients away.
pub(crate) const ANNOUNCE_PAUSE: Duration = Duration::from_millis(300);
/// Time for what was accepted to be acknowledged, once nothing more is accepted.
pub(crate) const FLUSH_WAIT: Duration = Duration::from_secs(30);
/// Time for connections to send their last answers.
pub(crate) const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Time for giving the registration back when the broker ends at once.
pub(crate) const ABANDON_WAIT: Duration = Duration::from_millis(500);
/// Pause before opening is tried again while a dependency does not answer: doubles from the first
/// to the second.
pub(crate) const OPEN_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Pause before registering is tried again: doubles from the first to the second.
pub(crate) const REGISTER_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often a broker looks what clients can do with it.
pub(crate) const READINESS_CHECK: Duration = Duration::from_secs(1);
/// A metadata store that answers no keep-alive for this long is said not to answer.
pub(crate) const METADATA_SILENCE: Duration = Duration::from_secs(3);
/// How many keep-alives fit into the time of a lease.
pub(crate) const KEEP_ALIVES_PER_TTL: u32 = 4;
/// How much less of the processors goes to what computes for long, as `nice` counts: a tenth of
/// what others get that want them at the same time.
pub(crate) const ASIDE_NICENESS: i32 = 10;
/// Threads beside those of the requests: one for the lease, one for whoever asks for metrics.
pub(crate) const CONTROL_THREADS: usize = 2;
/// The longest transactional id, in bytes: it is part of a key, and in every broker's memory.
pub(crate) const TRANSACTIONAL_ID_BYTES: usize = 1_024;
/// How often a change of a transactional id is decided anew while others change it, too.
pub(crate) const TRANSACTION_ATTEMPTS: usize = 16;
/// Partitions that are added to one transaction before anything is written to them (version 1).
/// Others are in the state already, as producers of their partitions.
pub(crate) const TRANSACTION_PARTITIONS: usize = 10_000;
/// Groups for which one transaction has offsets. Each takes a step of the etcd transaction that
/// ends it.
pub(crate) const TRANSACTION_GROUPS: usize = 16;
/// Bytes of offsets that one transaction has for a group.
pub(crate) const PENDING_OFFSETS_BYTES: usize = 512 * 1024;
/// Keys of offsets that one transaction changes for a group. Each takes a compare and a step of the
/// etcd transaction that ends it.
pub(crate) const PENDING_OFFSETS_KEYS: usize = 100;
/// Transactional ids whose values a broker remembers that it has written: about 300 bytes each.
pub(crate) const REMEMBERED_TRANSACTIONS: usize = 10_000;
/// A transaction that has been open for so long is shown in etcd: most end long before, and cost no
/// write.
pub(crate) const SHOWN_AFTER: Duration = Duration::from_secs(10);
/// Open transactions that are shown in etcd, the oldest.
pub(crate) const SHOWN_TRANSACTIONS: usize = 100;
/// Partitions that are shown of each, about 100 bytes each.
pub(crate) const SHOWN_PARTITIONS: usize = 20;
/// Transactional ids that are forgotten in one pass.
pub(crate) const EXPIRED_TRANSACTIONAL_IDS_PER_PASS: usize = 100;
/// Transactions of one group whose pending offsets are looked at for one answer.
pub(crate) const PENDING_TRANSACTIONS: usize = 1_000;

const _: () = assert!(MERGED_PARTITIONS_PER_OBJECT * 100 < RECORD_BYTES);
const _: () = assert!(MERGED_OBJECT_BYTES < MAX_MERGED_BYTES);
const _: () = assert!(SPACE_SHORT_PERCENT < SPACE_SLOW_PERCENT && SPACE_SLOW_PERCENT < SPACE_FULL_PERCENT);
const _: () = assert!(OFFSETS_BYTES_BESIDE_GROUP + GROUP_VALUE_BYTES < BACKEND_REQUEST_BYTES);
const _: () = assert!(GROUP_OFFSETS_BYTES_PER_TXN + OFFSETS_KEY_METADATA_BYTES < BACKEND_REQUEST_BYTES);
const _: () = assert!(MEMBER_METADATA_BYTES < GROUP_MEMBERS_BYTES && GROUP_MEMBERS_BYTES < GROUP_VALUE_BYTES);
const _: () = assert!(LARGE_GROUPS_ANSWER_BYTES < GROUPS_ANSWER_BYTES);
const _: () = assert!(CONSUMER_MEMBERS_BYTES < GROUP_VALUE_BYTES && INSTANCE_ID_BYTES < MEMBER_TEXT_BYTES);
const _: () =
    assert!(TELEMETRY_SERIES_PER_CLIENT < TELEMETRY_SERIES && MAX_PUSH_BYTES <= MAX_DECOMPRESSED_PUSH_BYTES);
const _: () = assert!(FETCH_READS_FOR.as_secs() < FETCH_MAX_WAIT.as_secs());
