// Command porcupine checks, with somebody else's checker of linearizability, what the clients of a simulation were told.
//
// Its input has one operation a line, as JSON; `strandline-sim history SEED` writes it. A partition is one object whose
// state is its end. An append that was acknowledged must have been done between its first send and its acknowledgement,
// at the offset that was told. One that was not may have been done at any time after it was sent, or not at all. A
// question for the end must be answered with the end at some moment between question and answer, whichever broker
// was asked.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

// operation is one line.
type operation struct {
	Partition int32 `json:"partition"`
	// Client is whoever did it.
	Client int `json:"client"`
	// Called and Answered are milliseconds; Answered is null if no answer came.
	Called   int64  `json:"called"`
	Answered *int64 `json:"answered"`
	// Append is the number of records of an append; 0 for a question for the end.
	Append int64 `json:"append"`
	// Offset is the base offset that was acknowledged, or the end that was told; -1 without an answer.
	Offset int64 `json:"offset"`
}

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byPartition := map[int32][]porcupine.Operation{}
		for _, done := range history {
			partition := done.Input.(operation).Partition
			byPartition[partition] = append(byPartition[partition], done)
		}
		var parts [][]porcupine.Operation
		for _, part := range byPartition {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		end, done := state.(int64), input.(operation)
		known := done.Answered != nil
		if done.Append == 0 {
			return !known || done.Offset == end, end
		}
		return !known || done.Offset == end, end + done.Append
	},
	DescribeOperation: func(input, _ any) string {
		done := input.(operation)
		if done.Append == 0 {
			return fmt.Sprintf("the end of partition %d is %d", done.Partition, done.Offset)
		}
		return fmt.Sprintf("%d records at %d of partition %d", done.Append, done.Offset, done.Partition)
	},
}

func read(path string) ([]porcupine.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var history []porcupine.Operation
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var done operation
		if err := json.Unmarshal(lines.Bytes(), &done); err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		// What no answer came to may still happen after everything else.
		answered := int64(1) << 62
		if done.Answered != nil {
			// Times are whole milliseconds: within one, nothing is known to come before anything else.
			answered = *done.Answered*1000 + 999
		}
		history = append(history, porcupine.Operation{
			ClientId: done.Client, Input: done, Call: done.Called * 1000, Return: answered,
		})
	}
	return history, lines.Err()
}

func check(path string) error {
	history, err := read(path)
	if err != nil {
		return err
	}
	if len(history) == 0 {
		return fmt.Errorf("there is nothing to check")
	}
	result, info := porcupine.CheckOperationsVerbose(model, history, time.Minute)
	switch result {
	case porcupine.Ok:
		fmt.Printf("%s: %d operations, linearizable\n", path, len(history))
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("a minute is not enough to say")
	}
	drawing := path + ".html"
	if err := porcupine.VisualizePath(model, info, drawing); err != nil {
		return fmt.Errorf("not linearizable, and it cannot be drawn: %w", err)
	}
	return fmt.Errorf("not linearizable: see %s", drawing)
}

func main() {
	failed := len(os.Args) < 2
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			failed = true
			fmt.Printf("%s: %v\n", path, err)
		}
	}
	if failed {
		os.Exit(1)
	}
}
