package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWhatIsNotLinearizableIsFound(t *testing.T) {
	const two = `{"partition":0,"client":1,"called":10,"answered":20,"append":2,"offset":0}` + "\n"
	for name, one := range map[string]struct {
		history string
		good    bool
	}{
		"the end afterwards":         {two + `{"partition":0,"client":-1,"called":30,"answered":40,"append":0,"offset":2}`, true},
		"the end meanwhile":          {two + `{"partition":0,"client":-1,"called":15,"answered":40,"append":0,"offset":0}`, true},
		"a stale end":                {two + `{"partition":0,"client":-1,"called":30,"answered":40,"append":0,"offset":0}`, false},
		"another partition":          {two + `{"partition":1,"client":-1,"called":30,"answered":40,"append":0,"offset":0}`, true},
		"an offset twice":            {two + `{"partition":0,"client":2,"called":30,"answered":40,"append":1,"offset":1}`, false},
		"a gap":                      {two + `{"partition":0,"client":2,"called":30,"answered":40,"append":1,"offset":3}`, false},
		"a gap that may be somebody": {two + `{"partition":0,"client":2,"called":5,"answered":null,"append":1,"offset":-1}` + "\n" + `{"partition":0,"client":3,"called":30,"answered":40,"append":1,"offset":3}`, true},
		"an answer before the send":  {two + `{"partition":0,"client":-1,"called":1,"answered":5,"append":0,"offset":2}`, false},
		"nothing":                    {"", false},
	} {
		path := filepath.Join(t.TempDir(), "history.jsonl")
		if err := os.WriteFile(path, []byte(one.history), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := check(path); (err == nil) != one.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
