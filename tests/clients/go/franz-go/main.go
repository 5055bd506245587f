// franz-go as an agent; with STRANDLINE_GROUP_PROTOCOL=consumer it uses the group protocol of KIP-848.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"strandline.test/clients/agent"
)

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

type client struct {
	common    []kgo.Opt
	next      bool
	admin     *kadm.Client
	producers map[string]*kgo.Client
	consumer  *kgo.Client
	topic     string
	group     string
	events    agent.Events

	id            string
	timeout       time.Duration
	isolation     kgo.IsolationLevel
	transactional *kgo.Client
	session       *kgo.GroupTransactSession
}

func main() {
	agent.Main(func(bootstrap, clientID string) {
		common := []kgo.Opt{kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.ClientID(clientID),
			kgo.WithLogger(kgo.BasicLogger(os.Stderr, kgo.LogLevelInfo, nil))}
		next := os.Getenv("STRANDLINE_GROUP_PROTOCOL") == "consumer"
		plain, err := kgo.NewClient(common...)
		if err != nil {
			panic(err)
		}
		c := &client{common: common, next: next, admin: kadm.NewClient(plain), producers: map[string]*kgo.Client{}}
		agent.Serve(c, &c.events)
	})
}

func (c *client) options(more ...kgo.Opt) []kgo.Opt {
	return append(append([]kgo.Opt{}, c.common...), more...)
}

func (c *client) Lacks() []string {
	if c.next {
		return []string{}
	}
	// It joins again when it cannot connect to the coordinator a few times in a row.
	return []string{"patience"}
}

func (c *client) producer(codec string) *kgo.Client {
	if c.producers[codec] == nil {
		// The broker is to refuse what is too large, not the client.
		options := c.options(kgo.ProducerBatchCompression(codecs[codec]), kgo.ProducerBatchMaxBytes(5_000_000),
			kgo.RecordPartitioner(partitioner{}))
		producer, err := kgo.NewClient(options...)
		if err != nil {
			panic(err)
		}
		c.producers[codec] = producer
	}
	return c.producers[codec]
}

func (c *client) Send(ctx context.Context, topic, codec string, records []agent.Record) []any {
	producer := c.transactional
	if producer == nil {
		producer = c.producer(codec)
	}
	sent := make([]any, len(records))
	for i, r := range records {
		record := &kgo.Record{Topic: topic, Key: agent.Bytes(r.Key), Value: agent.Bytes(r.Value), Partition: -1}
		if r.Partition != nil {
			record.Partition = *r.Partition
		}
		if r.Timestamp != nil {
			record.Timestamp = time.UnixMilli(*r.Timestamp)
		}
		for _, header := range r.Parsed {
			record.Headers = append(record.Headers, kgo.RecordHeader{Key: header.Name, Value: header.Value})
		}
		producer.Produce(ctx, record, func(record *kgo.Record, err error) {
			if err != nil {
				sent[i] = err.Error()
			} else {
				sent[i] = []int64{int64(record.Partition), record.Offset}
			}
		})
	}
	if err := producer.Flush(ctx); err != nil {
		return []any{err.Error()}
	}
	return sent
}

// partitioner takes the partition that a record names, and otherwise franz-go's own choice.
type partitioner struct{}

func (partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return choice{kgo.StickyKeyPartitioner(nil).ForTopic(topic)}
}

type choice struct{ kgo.TopicPartitioner }

func (c choice) Partition(record *kgo.Record, count int) int {
	if record.Partition >= 0 {
		return int(record.Partition)
	}
	return c.TopicPartitioner.Partition(record, count)
}

func (c *client) Open(ctx context.Context, topic, group, reset string) error {
	resets := map[string]kgo.Offset{
		"earliest": kgo.NewOffset().AtStart(), "latest": kgo.NewOffset().AtEnd(), "none": kgo.NewOffset().AtCommitted(),
	}
	note := func(what string) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			c.events.Note(what, partitions[topic])
		}
	}
	options := c.options(
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(resets[reset]), kgo.DisableAutoCommit(),
		kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(time.Second), kgo.FetchMaxWait(100*time.Millisecond),
		// A rebalance waits for the next poll, so that what was polled is committed before.
		kgo.BlockRebalanceOnPoll(),
		kgo.FetchIsolationLevel(c.isolation),
		kgo.OnPartitionsAssigned(note("assigned")), kgo.OnPartitionsRevoked(note("revoked")), kgo.OnPartitionsLost(note("revoked")))
	if c.next {
		options = append(options, kgo.ServerSideBalancer())
	}
	c.topic, c.group = topic, group
	var err error
	if c.id == "" {
		c.consumer, err = kgo.NewClient(options...)
		return err
	}
	// One client reads and writes: it takes the place of the one that only writes.
	c.transactional.Close()
	c.transactional, c.session = nil, nil
	session, err := kgo.NewGroupTransactSession(append(options, c.transacting()...)...)
	if err == nil {
		c.session, c.consumer, c.transactional = session, session.Client(), session.Client()
	}
	return err
}

func (c *client) Poll(ctx context.Context) (records []agent.Record, errs []string) {
	c.consumer.AllowRebalance()
	fetches := c.consumer.PollRecords(ctx, 500)
	fetches.EachError(func(_ string, partition int32, err error) {
		if !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, fmt.Sprintf("partition %d: %v", partition, err))
		}
	})
	fetches.EachRecord(func(r *kgo.Record) {
		headers := []agent.HeaderKV{}
		for _, header := range r.Headers {
			headers = append(headers, agent.HeaderKV{Name: header.Key, Value: header.Value})
		}
		records = append(records, agent.Read(r.Partition, r.Offset, r.Timestamp, r.Key, r.Value, headers))
	})
	return records, errs
}

func (c *client) Commit(ctx context.Context, offsets map[int32]int64) error {
	wanted := map[string]map[int32]kgo.EpochOffset{c.topic: {}}
	for partition, offset := range offsets {
		wanted[c.topic][partition] = kgo.EpochOffset{Epoch: -1, Offset: offset}
	}
	var failed error
	c.consumer.CommitOffsetsSync(ctx, wanted, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, answer *kmsg.OffsetCommitResponse, err error) {
		failed = err
		if err != nil {
			return
		}
		for _, topic := range answer.Topics {
			for _, partition := range topic.Partitions {
				if err := kerr.ErrorForCode(partition.ErrorCode); err != nil {
					failed = err
				}
			}
		}
	})
	return failed
}

func (c *client) Committed(ctx context.Context, partitions []int32) (map[int32]int64, error) {
	found, err := c.admin.FetchOffsets(ctx, c.group)
	offsets := map[int32]int64{}
	for _, partition := range partitions {
		offsets[partition] = -1
		if at, there := found.Lookup(c.topic, partition); there {
			offsets[partition] = at.At
		}
	}
	return offsets, err
}

func (c *client) Pause(partition int32) error {
	c.consumer.PauseFetchPartitions(map[string][]int32{c.topic: {partition}})
	return nil
}

func (c *client) Resume(partition int32) error {
	c.consumer.ResumeFetchPartitions(map[string][]int32{c.topic: {partition}})
	return nil
}

func (c *client) Seek(partition int32, offset int64) error {
	c.consumer.SetOffsets(map[string]map[int32]kgo.EpochOffset{c.topic: {partition: {Epoch: -1, Offset: offset}}})
	return nil
}

func (c *client) Times(ctx context.Context, timestamp int64) (map[int32]*int64, error) {
	// Its admin client answers with the end of a partition where nothing is as late; it says so by a timestamp of -1.
	found, err := c.admin.ListOffsetsAfterMilli(ctx, timestamp, c.topic)
	offsets := map[int32]*int64{}
	found.Each(func(at kadm.ListedOffset) {
		offsets[at.Partition] = nil
		if at.Timestamp >= 0 {
			offsets[at.Partition] = &at.Offset
		}
	})
	return offsets, err
}

func (c *client) Close() error {
	c.consumer.CloseAllowingRebalance()
	return nil
}

func (c *client) Isolate(isolation string) {
	c.isolation = map[string]kgo.IsolationLevel{
		"read_committed": kgo.ReadCommitted(), "read_uncommitted": kgo.ReadUncommitted(),
	}[isolation]
}

func (c *client) transacting() []kgo.Opt {
	return []kgo.Opt{kgo.TransactionalID(c.id), kgo.TransactionTimeout(c.timeout), kgo.RecordPartitioner(partitioner{})}
}

func (c *client) InitTransactions(ctx context.Context, id string, timeout time.Duration) (err error) {
	c.id, c.timeout = id, timeout
	if c.transactional, err = kgo.NewClient(c.options(c.transacting()...)...); err == nil {
		// Otherwise it would wait until the first record.
		_, _, err = c.transactional.ProducerID(ctx)
	}
	return err
}

func (c *client) BeginTransaction() error { return c.transactional.BeginTransaction() }

// AddOffsets has nothing to do: a session commits what was polled.
func (c *client) AddOffsets(map[int32]int64) error {
	if c.session == nil {
		return errors.New("nothing is open")
	}
	return nil
}

func (c *client) EndTransaction(ctx context.Context, commit bool) error {
	if c.session == nil {
		return c.transactional.EndTransaction(ctx, kgo.TransactionEndTry(commit))
	}
	committed, err := c.session.End(ctx, kgo.TransactionEndTry(commit))
	if err == nil && committed != commit {
		err = errors.New("a rebalance aborted the transaction")
	}
	return err
}

func (c *client) DescribeTransactions(ctx context.Context, id, topic string, answer map[string]any) error {
	listed, err := c.admin.ListTransactions(ctx, nil, nil)
	if err != nil {
		return err
	}
	answer["listed"] = listed[id].State
	described, err := c.admin.DescribeTransactions(ctx, id)
	if err != nil {
		return err
	}
	found := described[id]
	answer["state"], answer["timeout_ms"] = found.State, found.TimeoutMillis
	partitions := []int32{}
	for partition := range found.Topics[topic] {
		partitions = append(partitions, partition)
	}
	slices.Sort(partitions)
	answer["partitions"] = partitions
	producing, err := c.admin.DescribeProducers(ctx, topicOf(topic))
	if err != nil {
		return err
	}
	producers := map[int32][]int64{}
	producing.EachPartition(func(partition kadm.DescribedProducersPartition) {
		err = errors.Join(err, partition.Err)
		producers[partition.Partition] = []int64{}
		for _, producer := range partition.ActiveProducers {
			producers[partition.Partition] = append(producers[partition.Partition], producer.CurrentTxnStartOffset)
		}
	})
	answer["producers"] = producers
	return errors.Join(found.Err, err)
}

func topicOf(topic string) kadm.TopicsSet {
	set := kadm.TopicsSet{}
	set.Add(topic)
	return set
}

func (c *client) Create(ctx context.Context, topic string, partitions int, configs map[string]string) error {
	_, err := c.admin.CreateTopic(ctx, int32(partitions), -1, pointers(configs), topic)
	return err
}

func pointers(configs map[string]string) map[string]*string {
	with := map[string]*string{}
	for name, value := range configs {
		with[name] = &value
	}
	return with
}

func (c *client) Count(ctx context.Context, topic string) (*int, error) {
	topics, err := c.admin.ListTopics(ctx)
	if found := topics[topic]; found.Err == nil && len(found.Partitions) > 0 {
		count := len(found.Partitions)
		return &count, err
	}
	return nil, err
}

func (c *client) Grow(ctx context.Context, topic string, count int) error {
	answer, err := c.admin.UpdatePartitions(ctx, count, topic)
	if err == nil {
		err = answer[topic].Err
	}
	return err
}

func (c *client) Delete(ctx context.Context, topic string) error {
	_, err := c.admin.DeleteTopic(ctx, topic)
	return err
}

func (c *client) Alter(ctx context.Context, topic string, configs map[string]string) error {
	changes := []kadm.AlterConfig{}
	for name, value := range pointers(configs) {
		changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: value})
	}
	answers, err := c.admin.AlterTopicConfigs(ctx, changes, topic)
	if err == nil {
		err = answers[0].Err
	}
	return err
}

func (c *client) Config(ctx context.Context, topic, name string) (string, error) {
	found, err := c.admin.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return "", err
	}
	for _, config := range found[0].Configs {
		if config.Key == name {
			return config.MaybeValue(), nil
		}
	}
	return "", fmt.Errorf("%s has no %s", topic, name)
}
