// Package agent is what the Go clients have in common: it reads requests and writes answers, as agent.py describes them.
package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// CommitPatience is how long a rebalance waits for the commit of what was polled.
const CommitPatience = 3 * time.Second

// ErrLacks says that the client has no such thing; its text is one of LACKS in agent.py.
type ErrLacks string

func (e ErrLacks) Error() string { return string(e) }

// Record is a record as it is sent and as it was read.
type Record struct {
	Partition *int32     `json:"p"`
	Offset    int64      `json:"o"`
	Timestamp *int64     `json:"t"`
	Key       *[]byte    `json:"k"`
	Value     *[]byte    `json:"v"`
	Headers   [][2]any   `json:"h"`
	Parsed    []HeaderKV `json:"-"`
}

// HeaderKV is a header; a nil value is null.
type HeaderKV struct {
	Name  string
	Value []byte
}

// Request is any of the requests.
type Request struct {
	Do         string            `json:"do"`
	Topic      string            `json:"topic"`
	Codec      string            `json:"codec"`
	Records    []Record          `json:"records"`
	Group      string            `json:"group"`
	Reset      string            `json:"reset"`
	Ms         int               `json:"ms"`
	Offsets    map[int32]int64   `json:"offsets"`
	Partitions json.RawMessage   `json:"partitions"`
	Partition  int32             `json:"partition"`
	Offset     int64             `json:"offset"`
	Timestamp  int64             `json:"timestamp"`
	Configs    map[string]string `json:"configs"`
	Count      int32             `json:"count"`
	Name       string            `json:"name"`
	Isolation  string            `json:"isolation"`
	ID         string            `json:"id"`
	TimeoutMs  int               `json:"timeout_ms"`
	Commit     bool              `json:"commit"`
}

// Client is one library: every method is a request.
type Client interface {
	Lacks() []string
	// Send gives partition and offset of each record, or why it was not taken.
	Send(ctx context.Context, topic, codec string, records []Record) []any
	Open(ctx context.Context, topic, group, reset string) error
	// Poll waits for records until the context ends.
	Poll(ctx context.Context) (records []Record, errs []string)
	Commit(ctx context.Context, offsets map[int32]int64) error
	Committed(ctx context.Context, partitions []int32) (map[int32]int64, error)
	Pause(partition int32) error
	Resume(partition int32) error
	Seek(partition int32, offset int64) error
	Times(ctx context.Context, timestamp int64) (map[int32]*int64, error)
	Close() error
	Create(ctx context.Context, topic string, partitions int, configs map[string]string) error
	// Count is nil for a topic that is not there.
	Count(ctx context.Context, topic string) (*int, error)
	Grow(ctx context.Context, topic string, count int) error
	Delete(ctx context.Context, topic string) error
	Alter(ctx context.Context, topic string, configs map[string]string) error
	Config(ctx context.Context, topic, name string) (string, error)
}

// Transactor is a client that has transactions.
type Transactor interface {
	// Isolate says how the topics that are opened from now on are read: read_committed or read_uncommitted.
	Isolate(isolation string)
	InitTransactions(ctx context.Context, id string, timeout time.Duration) error
	BeginTransaction() error
	AddOffsets(offsets map[int32]int64) error
	EndTransaction(ctx context.Context, commit bool) error
	DescribeTransactions(ctx context.Context, id, topic string, answer map[string]any) error
}

// Events collects what was given and taken since the last poll.
type Events struct {
	mutex  sync.Mutex
	events [][2]any
}

// Note adds one; what is assigned or revoked.
func (e *Events) Note(what string, partitions []int32) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if partitions == nil {
		partitions = []int32{}
	}
	e.events = append(e.events, [2]any{what, partitions})
}

// Take gives them and forgets them.
func (e *Events) Take() [][2]any {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	taken := e.events
	e.events = nil
	if taken == nil {
		return [][2]any{}
	}
	return taken
}

// Serve answers requests until the input ends.
func Serve(client Client, events *Events) {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var request Request
		answer := map[string]any{}
		if err := json.Unmarshal(line, &request); err != nil {
			answer["error"] = "not a request: " + err.Error()
		} else if err := do(client, events, &request, answer); err != nil {
			var lacks ErrLacks
			if errors.As(err, &lacks) {
				answer["lacks"] = string(lacks)
			} else {
				answer["error"] = err.Error()
			}
		}
		if err := out.Encode(answer); err != nil {
			return
		}
	}
}

func do(c Client, events *Events, r *Request, answer map[string]any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	switch r.Do {
	case "hello":
		answer["lacks"] = c.Lacks()
	case "send":
		for i := range r.Records {
			if err := r.Records[i].parse(); err != nil {
				return err
			}
		}
		answer["sent"] = c.Send(ctx, r.Topic, r.Codec, r.Records)
	case "open":
		events.Take()
		if transactor, is := c.(Transactor); is && r.Isolation != "" {
			transactor.Isolate(r.Isolation)
		}
		return c.Open(ctx, r.Topic, r.Group, r.Reset)
	case "poll":
		poll, cancel := context.WithTimeout(ctx, time.Duration(r.Ms)*time.Millisecond)
		defer cancel()
		records, errs := c.Poll(poll)
		for i := range records {
			records[i].print()
		}
		answer["records"], answer["errors"], answer["events"] = notNil(records), notNil(errs), events.Take()
	case "commit":
		return c.Commit(ctx, r.Offsets)
	case "committed":
		var partitions []int32
		if err := json.Unmarshal(r.Partitions, &partitions); err != nil {
			return err
		}
		offsets, err := c.Committed(ctx, partitions)
		answer["offsets"] = offsets
		return err
	case "pause":
		return c.Pause(r.Partition)
	case "resume":
		return c.Resume(r.Partition)
	case "seek":
		return c.Seek(r.Partition, r.Offset)
	case "times":
		offsets, err := c.Times(ctx, r.Timestamp)
		answer["offsets"] = offsets
		return err
	case "close":
		return c.Close()
	case "create":
		var partitions int
		if err := json.Unmarshal(r.Partitions, &partitions); err != nil {
			return err
		}
		return c.Create(ctx, r.Topic, partitions, r.Configs)
	case "partitions":
		count, err := c.Count(ctx, r.Topic)
		answer["count"] = count
		return err
	case "grow":
		return c.Grow(ctx, r.Topic, int(r.Count))
	case "delete":
		return c.Delete(ctx, r.Topic)
	case "alter":
		return c.Alter(ctx, r.Topic, r.Configs)
	case "config":
		value, err := c.Config(ctx, r.Topic, r.Name)
		answer["value"] = value
		return err
	default:
		if transactor, is := c.(Transactor); is {
			return transact(ctx, transactor, r, answer)
		}
		return fmt.Errorf("%q is no request", r.Do)
	}
	return nil
}

func transact(ctx context.Context, c Transactor, r *Request, answer map[string]any) error {
	switch r.Do {
	case "init_transactions":
		return c.InitTransactions(ctx, r.ID, time.Duration(r.TimeoutMs)*time.Millisecond)
	case "begin_transaction":
		return c.BeginTransaction()
	case "add_offsets":
		return c.AddOffsets(r.Offsets)
	case "end_transaction":
		return c.EndTransaction(ctx, r.Commit)
	case "describe_transactions":
		return c.DescribeTransactions(ctx, r.ID, r.Topic, answer)
	default:
		return fmt.Errorf("%q is no request", r.Do)
	}
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Bytes gives the bytes of a key or a value, nil for null.
func Bytes(b *[]byte) []byte {
	if b == nil {
		return nil
	}
	if *b == nil {
		return []byte{}
	}
	return *b
}

// Read makes a record that was read.
func Read(partition int32, offset int64, at time.Time, key, value []byte, headers []HeaderKV) Record {
	ms := at.UnixMilli()
	return Record{Partition: &partition, Offset: offset, Timestamp: &ms, Key: pointer(key), Value: pointer(value), Parsed: headers}
}

func pointer(b []byte) *[]byte {
	if b == nil {
		return nil
	}
	return &b
}

// parse makes headers of pairs.
func (r *Record) parse() error {
	for _, pair := range r.Headers {
		name, isText := pair[0].(string)
		if !isText {
			return fmt.Errorf("%v is no name of a header", pair[0])
		}
		header := HeaderKV{Name: name}
		if encoded, isText := pair[1].(string); isText {
			if err := json.Unmarshal([]byte(`"`+encoded+`"`), &header.Value); err != nil {
				return err
			}
			if header.Value == nil {
				header.Value = []byte{}
			}
		}
		r.Parsed = append(r.Parsed, header)
	}
	return nil
}

// print makes pairs of headers.
func (r *Record) print() {
	r.Headers = [][2]any{}
	for _, header := range r.Parsed {
		var value any
		if header.Value != nil {
			value = header.Value
		}
		r.Headers = append(r.Headers, [2]any{header.Name, value})
	}
}

// Main takes the command line: agent BOOTSTRAP CLIENT_ID.
func Main(serve func(bootstrap, clientID string)) {
	if len(os.Args) < 4 || os.Args[1] != "agent" {
		fmt.Fprintln(os.Stderr, "usage: agent BOOTSTRAP CLIENT_ID")
		os.Exit(2)
	}
	serve(os.Args[2], os.Args[3])
}

// Holder makes a rebalance wait until what was polled is committed.
type Holder struct {
	mutex sync.Mutex
	done  chan struct{}
}

// Polled says that records were handed out.
func (h *Holder) Polled() {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.done == nil {
		h.done = make(chan struct{})
	}
}

// Committed says that they are committed, or that nobody will.
func (h *Holder) Committed() {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.done != nil {
		close(h.done)
		h.done = nil
	}
}

// Wait waits for that.
func (h *Holder) Wait() {
	h.mutex.Lock()
	done := h.done
	h.mutex.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(CommitPatience):
	}
}
