// Sarama as an agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"strandline.test/clients/agent"
)

var codecs = map[string]sarama.CompressionCodec{
	"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
	"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
}

type client struct {
	brokers   []string
	clientID  string
	plain     sarama.Client
	admin     sarama.ClusterAdmin
	producers map[string]sarama.SyncProducer

	transactional sarama.SyncProducer
	isolation     sarama.IsolationLevel

	topic, name string
	group       sarama.ConsumerGroup
	stop        context.CancelFunc
	stopped     sync.WaitGroup
	messages    chan *sarama.ConsumerMessage
	events      agent.Events
	holder      agent.Holder

	mutex   sync.Mutex
	session sarama.ConsumerGroupSession
}

func main() {
	agent.Main(func(bootstrap, clientID string) {
		c := &client{brokers: strings.Split(bootstrap, ","), clientID: clientID, producers: map[string]sarama.SyncProducer{}}
		var err error
		if c.plain, err = sarama.NewClient(c.brokers, c.config()); err == nil {
			c.admin, err = sarama.NewClusterAdminFromClient(c.plain)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		agent.Serve(c, &c.events)
	})
}

func (c *client) config() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.V3_6_0_0
	// It takes no other characters.
	config.ClientID = strings.NewReplacer(",", "_", "=", "_").Replace(c.clientID)
	config.Metadata.AllowAutoTopicCreation = false
	return config
}

func (c *client) Lacks() []string { return []string{"reset-none", "seek", "patience"} }

func (c *client) producing() *sarama.Config {
	config := c.config()
	config.Producer.Return.Successes = true
	config.Producer.Idempotent = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Net.MaxOpenRequests = 1
	config.Producer.Partitioner = newPartitioner
	// The broker is to refuse what is too large, not the client.
	config.Producer.MaxMessageBytes = 5_000_000
	return config
}

func (c *client) producer(codec string) (sarama.SyncProducer, error) {
	if c.transactional != nil {
		return c.transactional, nil
	}
	if c.producers[codec] == nil {
		config := c.producing()
		config.Producer.Compression = codecs[codec]
		producer, err := sarama.NewSyncProducer(c.brokers, config)
		if err != nil {
			return nil, err
		}
		c.producers[codec] = producer
	}
	return c.producers[codec], nil
}

func (c *client) Send(_ context.Context, topic, codec string, records []agent.Record) []any {
	producer, err := c.producer(codec)
	if err != nil {
		return []any{err.Error()}
	}
	sent := make([]any, len(records))
	messages := make([]*sarama.ProducerMessage, len(records))
	for i, r := range records {
		message := &sarama.ProducerMessage{Topic: topic, Partition: -1, Metadata: i}
		if r.Key != nil {
			message.Key = sarama.ByteEncoder(agent.Bytes(r.Key))
		}
		if r.Value != nil {
			message.Value = sarama.ByteEncoder(agent.Bytes(r.Value))
		}
		if r.Partition != nil {
			message.Partition = *r.Partition
		}
		if r.Timestamp != nil {
			message.Timestamp = time.UnixMilli(*r.Timestamp)
		}
		for _, header := range r.Parsed {
			message.Headers = append(message.Headers, sarama.RecordHeader{Key: []byte(header.Name), Value: header.Value})
		}
		messages[i] = message
	}
	var failures sarama.ProducerErrors
	if err := producer.SendMessages(messages); errors.As(err, &failures) {
		for _, failure := range failures {
			sent[failure.Msg.Metadata.(int)] = failure.Err.Error()
		}
	}
	for i, message := range messages {
		if sent[i] == nil {
			sent[i] = []int64{int64(message.Partition), message.Offset}
		}
	}
	return sent
}

// partitioner takes the partition that a message names, and otherwise Sarama's own choice.
type partitioner struct{ sarama.Partitioner }

func newPartitioner(topic string) sarama.Partitioner {
	return partitioner{sarama.NewHashPartitioner(topic)}
}

func (p partitioner) Partition(message *sarama.ProducerMessage, count int32) (int32, error) {
	if message.Partition >= 0 {
		return message.Partition, nil
	}
	return p.Partitioner.Partition(message, count)
}

func (c *client) Open(_ context.Context, topic, group, reset string) error {
	config := c.config()
	config.Consumer.Offsets.AutoCommit.Enable = false
	config.Consumer.Offsets.Initial = map[string]int64{"earliest": sarama.OffsetOldest, "latest": sarama.OffsetNewest}[reset]
	config.Consumer.Group.Session.Timeout = 6 * time.Second
	config.Consumer.Group.Heartbeat.Interval = time.Second
	config.Consumer.IsolationLevel = c.isolation
	config.Consumer.MaxWaitTime = 100 * time.Millisecond
	config.Consumer.Return.Errors = true
	config.ChannelBufferSize = 0
	var err error
	if c.group, err = sarama.NewConsumerGroup(c.brokers, group, config); err != nil {
		return err
	}
	c.topic, c.name = topic, group
	c.messages = make(chan *sarama.ConsumerMessage)
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.stopped.Add(2)
	go func() {
		defer c.stopped.Done()
		for ctx.Err() == nil {
			if err := c.group.Consume(ctx, []string{topic}, c); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, err)
				time.Sleep(100 * time.Millisecond)
			}
		}
	}()
	go func() {
		defer c.stopped.Done()
		for err := range c.group.Errors() {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return nil
}

// Setup begins a session: it has partitions.
func (c *client) Setup(session sarama.ConsumerGroupSession) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.session = session
	c.events.Note("assigned", session.Claims()[c.topic])
	return nil
}

// Cleanup ends a session, after every claim.
func (c *client) Cleanup(session sarama.ConsumerGroupSession) error {
	c.holder.Wait()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.session = nil
	c.events.Note("revoked", session.Claims()[c.topic])
	return nil
}

// ConsumeClaim hands out the records of a partition, one by one, until the session ends.
func (c *client) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			select {
			case c.messages <- message:
			case <-session.Context().Done():
				return nil
			}
		case <-session.Context().Done():
			return nil
		}
	}
}

func (c *client) Poll(ctx context.Context) (records []agent.Record, errs []string) {
	// Whoever polls again does not intend to commit what it had.
	c.holder.Committed()
	for len(records) < 500 {
		select {
		case m := <-c.messages:
			c.holder.Polled()
			headers := []agent.HeaderKV{}
			for _, header := range m.Headers {
				headers = append(headers, agent.HeaderKV{Name: string(header.Key), Value: header.Value})
			}
			records = append(records, agent.Read(m.Partition, m.Offset, m.Timestamp, m.Key, m.Value, headers))
			if len(records) == 1 {
				// What else there is, but not until the end.
				soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				ctx = soon
			}
		case <-ctx.Done():
			return records, errs
		}
	}
	return records, errs
}

func (c *client) Commit(ctx context.Context, offsets map[int32]int64) error {
	defer c.holder.Committed()
	if err := c.mark(offsets); err != nil {
		return err
	}
	// It says nothing of success, so the coordinator is asked.
	partitions := []int32{}
	for partition := range offsets {
		partitions = append(partitions, partition)
	}
	found, err := c.Committed(ctx, partitions)
	for partition, offset := range offsets {
		if err == nil && found[partition] != offset {
			err = fmt.Errorf("partition %d is committed to %d instead of %d", partition, found[partition], offset)
		}
	}
	if err != nil {
		_ = c.plain.RefreshCoordinator(c.name)
	}
	return err
}

func (c *client) mark(offsets map[int32]int64) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.session == nil {
		return errors.New("there is no session")
	}
	for partition, offset := range offsets {
		c.session.MarkOffset(c.topic, partition, offset, "")
		c.session.ResetOffset(c.topic, partition, offset, "")
	}
	c.session.Commit()
	return nil
}

func (c *client) Committed(_ context.Context, partitions []int32) (map[int32]int64, error) {
	found, err := c.admin.ListConsumerGroupOffsets(c.name, map[string][]int32{c.topic: partitions})
	offsets := map[int32]int64{}
	for _, partition := range partitions {
		offsets[partition] = -1
		if found != nil {
			if block := found.GetBlock(c.topic, partition); block != nil {
				offsets[partition] = block.Offset
			}
		}
	}
	return offsets, err
}

func (c *client) Pause(partition int32) error {
	c.group.Pause(map[string][]int32{c.topic: {partition}})
	return nil
}

func (c *client) Resume(partition int32) error {
	c.group.Resume(map[string][]int32{c.topic: {partition}})
	return nil
}

func (c *client) Seek(int32, int64) error { return agent.ErrLacks("seek") }

func (c *client) Times(_ context.Context, timestamp int64) (map[int32]*int64, error) {
	partitions, err := c.plain.Partitions(c.topic)
	offsets := map[int32]*int64{}
	for _, partition := range partitions {
		offset, failed := c.plain.GetOffset(c.topic, partition, timestamp)
		if failed != nil {
			err = failed
		}
		offsets[partition] = nil
		if offset >= 0 {
			offsets[partition] = &offset
		}
	}
	return offsets, err
}

func (c *client) Close() error {
	c.holder.Committed()
	c.stop()
	err := c.group.Close()
	c.stopped.Wait()
	return err
}

func (c *client) Isolate(isolation string) {
	c.isolation = map[string]sarama.IsolationLevel{
		"read_committed": sarama.ReadCommitted, "read_uncommitted": sarama.ReadUncommitted,
	}[isolation]
}

func (c *client) InitTransactions(_ context.Context, id string, timeout time.Duration) (err error) {
	config := c.producing()
	config.Producer.Transaction.ID = id
	config.Producer.Transaction.Timeout = timeout
	c.transactional, err = sarama.NewSyncProducer(c.brokers, config)
	return err
}

func (c *client) BeginTransaction() error { return c.transactional.BeginTxn() }

// AddOffsets only notes them: they are sent with the commit.
func (c *client) AddOffsets(offsets map[int32]int64) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.session == nil {
		return errors.New("there is no session")
	}
	wanted := []*sarama.PartitionOffsetMetadata{}
	for partition, offset := range offsets {
		wanted = append(wanted, &sarama.PartitionOffsetMetadata{Partition: partition, Offset: offset})
	}
	member := sarama.NewConsumerGroupMetadataFromSession(c.session, c.name, nil)
	return c.transactional.AddOffsetsToTxnWithGroupMetadata(map[string][]*sarama.PartitionOffsetMetadata{c.topic: wanted}, member)
}

func (c *client) EndTransaction(_ context.Context, commit bool) error {
	if commit {
		return c.transactional.CommitTxn()
	}
	return c.transactional.AbortTxn()
}

func (c *client) DescribeTransactions(context.Context, string, string, map[string]any) error {
	return agent.ErrLacks("describe-transactions")
}

func (c *client) Create(_ context.Context, topic string, partitions int, configs map[string]string) error {
	detail := &sarama.TopicDetail{NumPartitions: int32(partitions), ReplicationFactor: -1, ConfigEntries: pointers(configs)}
	return c.admin.CreateTopic(topic, detail, false)
}

func pointers(configs map[string]string) map[string]*string {
	with := map[string]*string{}
	for name, value := range configs {
		with[name] = &value
	}
	return with
}

func (c *client) Count(_ context.Context, topic string) (*int, error) {
	topics, err := c.admin.ListTopics()
	if found, there := topics[topic]; there {
		count := int(found.NumPartitions)
		return &count, err
	}
	return nil, err
}

func (c *client) Grow(_ context.Context, topic string, count int) error {
	return c.admin.CreatePartitions(topic, int32(count), nil, false)
}

func (c *client) Delete(_ context.Context, topic string) error { return c.admin.DeleteTopic(topic) }

func (c *client) Alter(_ context.Context, topic string, configs map[string]string) error {
	changes := map[string]sarama.IncrementalAlterConfigsEntry{}
	for name, value := range pointers(configs) {
		changes[name] = sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationSet, Value: value}
	}
	return c.admin.IncrementalAlterConfig(sarama.TopicResource, topic, changes, false)
}

func (c *client) Config(_ context.Context, topic, name string) (string, error) {
	found, err := c.admin.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: topic, ConfigNames: []string{name}})
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0].Value, nil
}
