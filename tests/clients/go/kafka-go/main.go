// kafka-go as an agent. Its reader hides what a group does, so generations are used as its reader does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"strandline.test/clients/agent"
)

var codecs = map[string]kafka.Compression{
	"none": 0, "gzip": kafka.Gzip, "snappy": kafka.Snappy, "lz4": kafka.Lz4, "zstd": kafka.Zstd,
}

type client struct {
	brokers []string
	plain   *kafka.Client
	dialer  *kafka.Dialer

	topic, name string
	reset       int64
	group       *kafka.ConsumerGroup
	stopped     sync.WaitGroup
	stop        context.CancelFunc
	messages    chan kafka.Message
	events      agent.Events
	holder      agent.Holder

	mutex      sync.Mutex
	generation *kafka.Generation
}

func main() {
	agent.Main(func(bootstrap, clientID string) {
		brokers := strings.Split(bootstrap, ",")
		transport := &kafka.Transport{ClientID: clientID, MetadataTTL: 250 * time.Millisecond}
		c := &client{
			brokers: brokers,
			plain:   &kafka.Client{Addr: kafka.TCP(brokers...), Transport: transport, Timeout: 20 * time.Second},
			dialer:  &kafka.Dialer{ClientID: clientID, Timeout: 5 * time.Second},
		}
		agent.Serve(c, &c.events)
	})
}

// Lacks is long: its reader of a group can only read on.
func (c *client) Lacks() []string {
	return []string{"null-header", "empty", "reset-none", "pause", "seek", "patience"}
}

func (c *client) Send(ctx context.Context, topic, codec string, records []agent.Record) []any {
	sent := make([]any, len(records))
	messages := make([]kafka.Message, len(records))
	for i, r := range records {
		message := kafka.Message{Key: agent.Bytes(r.Key), Value: agent.Bytes(r.Value), WriterData: i}
		if r.Partition != nil {
			message.Partition = int(*r.Partition)
		}
		if r.Timestamp != nil {
			message.Time = time.UnixMilli(*r.Timestamp)
		}
		for _, header := range r.Parsed {
			message.Headers = append(message.Headers, kafka.Header{Key: header.Name, Value: header.Value})
		}
		messages[i] = message
	}
	writer := &kafka.Writer{
		Addr: c.plain.Addr, Topic: topic, Transport: c.plain.Transport, RequiredAcks: kafka.RequireAll,
		Compression: codecs[codec], BatchTimeout: 5 * time.Millisecond, Balancer: balancer{records, &kafka.Hash{}},
		// The broker is to refuse what is too large, not the client.
		BatchBytes: 5_000_000,
		Completion: func(batch []kafka.Message, err error) {
			for _, message := range batch {
				if err != nil {
					sent[message.WriterData.(int)] = err.Error()
				} else {
					sent[message.WriterData.(int)] = []int64{int64(message.Partition), message.Offset}
				}
			}
		},
	}
	err := writer.WriteMessages(ctx, messages...)
	_ = writer.Close()
	for i := range sent {
		if sent[i] == nil {
			sent[i] = fmt.Sprintf("no answer: %v", err)
		}
	}
	return sent
}

// balancer takes the partition that a record names, and otherwise the hash of the key.
type balancer struct {
	records []agent.Record
	other   kafka.Balancer
}

func (b balancer) Balance(message kafka.Message, partitions ...int) int {
	if number, is := message.WriterData.(int); is && b.records[number].Partition != nil {
		return int(*b.records[number].Partition)
	}
	return b.other.Balance(message, partitions...)
}

func (c *client) Open(_ context.Context, topic, group, reset string) error {
	c.topic, c.name, c.reset = topic, group, kafka.FirstOffset
	if reset == "latest" {
		c.reset = kafka.LastOffset
	}
	var err error
	c.group, err = kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: group, Brokers: c.brokers, Dialer: c.dialer, Topics: []string{topic}, StartOffset: c.reset,
		SessionTimeout: 6 * time.Second, HeartbeatInterval: time.Second, RebalanceTimeout: 10 * time.Second,
		JoinGroupBackoff: 500 * time.Millisecond, Timeout: 5 * time.Second,
		Logger: kafka.LoggerFunc(func(text string, args ...any) { fmt.Fprintf(os.Stderr, text+"\n", args...) }),
	})
	if err != nil {
		return err
	}
	c.messages = make(chan kafka.Message)
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.stopped.Add(1)
	go func() {
		defer c.stopped.Done()
		for ctx.Err() == nil {
			generation, err := c.group.Next(ctx)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			c.begin(generation)
		}
	}()
	return nil
}

// begin starts a reader for each partition of a generation; it ends before the next one begins.
func (c *client) begin(generation *kafka.Generation) {
	partitions := []int32{}
	for _, assigned := range generation.Assignments[c.topic] {
		partitions = append(partitions, int32(assigned.ID))
	}
	c.mutex.Lock()
	c.generation = generation
	c.mutex.Unlock()
	c.events.Note("assigned", partitions)
	var readers sync.WaitGroup
	for _, assigned := range generation.Assignments[c.topic] {
		readers.Add(1)
		generation.Start(func(ctx context.Context) {
			defer readers.Done()
			c.read(ctx, assigned.ID, assigned.Offset)
		})
	}
	generation.Start(func(ctx context.Context) {
		<-ctx.Done()
		readers.Wait()
		c.holder.Wait()
		c.mutex.Lock()
		defer c.mutex.Unlock()
		c.generation = nil
		c.events.Note("revoked", partitions)
	})
}

func (c *client) read(ctx context.Context, partition int, offset int64) {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: c.brokers, Dialer: c.dialer, Topic: c.topic, Partition: partition, MaxWait: 100 * time.Millisecond,
		MinBytes: 1, MaxBytes: 5_000_000,
		ErrorLogger: kafka.LoggerFunc(func(text string, args ...any) { fmt.Fprintf(os.Stderr, text+"\n", args...) }),
	})
	defer reader.Close()
	// What is out of range goes to where the group begins; its reader would try again for ever.
	if first, last, err := c.ends(ctx, partition); err == nil && offset >= 0 && (offset < first || offset > last) {
		offset = c.reset
	}
	if err := reader.SetOffset(offset); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	for {
		message, err := reader.FetchMessage(ctx)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		select {
		case c.messages <- message:
		case <-ctx.Done():
			return
		}
	}
}

func (c *client) ends(ctx context.Context, partition int) (first, last int64, err error) {
	asked := []kafka.OffsetRequest{kafka.FirstOffsetOf(partition), kafka.LastOffsetOf(partition)}
	answer, err := c.plain.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{c.topic: asked}})
	if err != nil {
		return 0, 0, err
	}
	found := answer.Topics[c.topic][0]
	return found.FirstOffset, found.LastOffset, found.Error
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
				headers = append(headers, agent.HeaderKV{Name: header.Key, Value: header.Value})
			}
			records = append(records, agent.Read(int32(m.Partition), m.Offset, m.Time, m.Key, m.Value, headers))
			if len(records) == 1 {
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

func (c *client) Commit(_ context.Context, offsets map[int32]int64) error {
	defer c.holder.Committed()
	c.mutex.Lock()
	generation := c.generation
	c.mutex.Unlock()
	if generation == nil {
		return errors.New("there is no generation")
	}
	wanted := map[int]int64{}
	for partition, offset := range offsets {
		wanted[int(partition)] = offset
	}
	return generation.CommitOffsets(map[string]map[int]int64{c.topic: wanted})
}

func (c *client) Committed(ctx context.Context, partitions []int32) (map[int32]int64, error) {
	wanted := []int{}
	for _, partition := range partitions {
		wanted = append(wanted, int(partition))
	}
	answer, err := c.plain.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: c.name, Topics: map[string][]int{c.topic: wanted}})
	if err != nil {
		return nil, err
	}
	offsets := map[int32]int64{}
	for _, partition := range answer.Topics[c.topic] {
		offsets[int32(partition.Partition)] = partition.CommittedOffset
	}
	return offsets, answer.Error
}

func (c *client) Pause(int32) error { return agent.ErrLacks("pause") }

func (c *client) Resume(int32) error { return agent.ErrLacks("pause") }

func (c *client) Seek(int32, int64) error { return agent.ErrLacks("seek") }

func (c *client) Times(ctx context.Context, timestamp int64) (map[int32]*int64, error) {
	count, err := c.Count(ctx, c.topic)
	if err != nil {
		return nil, err
	}
	asked := []kafka.OffsetRequest{}
	for partition := range *count {
		asked = append(asked, kafka.TimeOffsetOf(partition, time.UnixMilli(timestamp)))
	}
	answer, err := c.plain.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{c.topic: asked}})
	if err != nil {
		return nil, err
	}
	offsets := map[int32]*int64{}
	for _, partition := range answer.Topics[c.topic] {
		offsets[int32(partition.Partition)] = nil
		for offset := range partition.Offsets {
			if offset >= 0 {
				offsets[int32(partition.Partition)] = &offset
			}
		}
	}
	return offsets, nil
}

func (c *client) Close() error {
	c.holder.Committed()
	c.stop()
	err := c.group.Close()
	c.stopped.Wait()
	return err
}

func (c *client) Create(ctx context.Context, topic string, partitions int, configs map[string]string) error {
	entries := []kafka.ConfigEntry{}
	for name, value := range configs {
		entries = append(entries, kafka.ConfigEntry{ConfigName: name, ConfigValue: value})
	}
	wanted := kafka.TopicConfig{Topic: topic, NumPartitions: partitions, ReplicationFactor: -1, ConfigEntries: entries}
	answer, err := c.plain.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{wanted}})
	if err == nil {
		err = answer.Errors[topic]
	}
	return err
}

func (c *client) Count(ctx context.Context, topic string) (*int, error) {
	answer, err := c.plain.Metadata(ctx, &kafka.MetadataRequest{})
	if err != nil {
		return nil, err
	}
	for _, found := range answer.Topics {
		if found.Name == topic && found.Error == nil {
			count := len(found.Partitions)
			return &count, nil
		}
	}
	return nil, nil
}

func (c *client) Grow(ctx context.Context, topic string, count int) error {
	wanted := []kafka.TopicPartitionsConfig{{Name: topic, Count: int32(count)}}
	answer, err := c.plain.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{Topics: wanted})
	if err == nil {
		err = answer.Errors[topic]
	}
	return err
}

func (c *client) Delete(ctx context.Context, topic string) error {
	answer, err := c.plain.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	if err == nil {
		err = answer.Errors[topic]
	}
	return err
}

func (c *client) Alter(ctx context.Context, topic string, configs map[string]string) error {
	resource := kafka.IncrementalAlterConfigsRequestResource{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic}
	for name, value := range configs {
		resource.Configs = append(resource.Configs,
			kafka.IncrementalAlterConfigsRequestConfig{Name: name, Value: value, ConfigOperation: kafka.ConfigOperationSet})
	}
	answer, err := c.plain.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{resource},
	})
	if err == nil {
		err = answer.Resources[0].Error
	}
	return err
}

func (c *client) Config(ctx context.Context, topic, name string) (string, error) {
	answer, err := c.plain.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{
		Resources: []kafka.DescribeConfigRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{name},
		}},
	})
	if err != nil {
		return "", err
	}
	for _, entry := range answer.Resources[0].ConfigEntries {
		if entry.ConfigName == name {
			return entry.ConfigValue, answer.Resources[0].Error
		}
	}
	return "", fmt.Errorf("%s has no %s: %w", topic, name, answer.Resources[0].Error)
}
