package operator

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// A task is found by its id, whatever ids the backend gives, by the beginning of it,
// and by what status shows.
func TestFindLocal(t *testing.T) {
	t.Parallel()
	dir, err := staging.Open(t.TempDir(), staging.Fetcher)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	e := &env{t: t, dir: dir}
	ids := []task.ID{"1397f0f1-4b7e", "1397f0f1-5555", "7", "77777", "0193-aaaa"}
	names := map[task.ID]string{}
	for _, id := range ids {
		names[id] = e.publish(&taskdb.Task{ID: id, Kind: task.KindDeploy, Token: "t", Version: "1.0.0"}).Name
	}
	cases := map[string]task.ID{
		"7": "7", "7777": "77777", "0193": "0193-aaaa", "1397f0f1-4B7": "1397f0f1-4b7e", names["77777"]: "77777",
		"77": "", "none": "",
	}
	for id, short := range ShortIDs(ids) {
		cases[short] = id
	}
	for name, want := range cases {
		found, err := FindLocal(dir, name)
		switch {
		case want == "" && !errors.Is(err, fs.ErrNotExist):
			t.Errorf("%s: found %+v, %v", name, found, err)
		case want != "" && (err != nil || found.Name != names[want]):
			t.Errorf("%s: found %+v, %v; want %s", name, found, err, want)
		}
	}
	if _, err := FindLocal(dir, "1397"); !errors.As(err, new(*NameError)) {
		t.Errorf("the beginning of two: %v", err)
	}
}

// What a command is told of a task that the database alone has.
func TestFindTask(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.newTask("1.0.0", nil)
	for _, name := range []string{string(id), string(id[:8]), string(id[:4])} {
		if row, err := e.FindTask(t.Context(), name); err != nil || row.ID != id {
			t.Errorf("%s: %+v, %v", name, row, err)
		}
	}
	for _, name := range []string{"", string(id[:3])} {
		if _, err := e.FindTask(t.Context(), name); !errors.As(err, new(*NameError)) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := e.FindTask(t.Context(), "ffff-none"); !errors.Is(err, taskdb.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

func TestServingText(t *testing.T) {
	t.Parallel()
	for result, want := range map[string]string{
		`{"message":"release 2 failed; release 1 was restored and serves","serving_version":"1"}`: "release 2 failed; release 1 was restored and serves",
		`{"message":"release 2 was not deployed, and nothing was changed","serving_version":"1"}`: "release 2 was not deployed, and nothing was changed; release 1 serves",
		`{"message":"release 2 failed, and what serves now is not known: look at the host"}`:      "release 2 failed, and what serves now is not known: look at the host",
		`null`: "",
	} {
		if got := ServingText(taskdb.TaskRow{Status: task.StatusFailed, Result: []byte(result)}); got != want {
			t.Errorf("%s: %q, want %q", result, got, want)
		}
	}
	for message, want := range map[string]string{
		"release 2 is up": "",
		"release 2 is up; the maintenance page could not be put up: no": "release 2 is up; the maintenance page could not be put up: no",
	} {
		row := taskdb.TaskRow{Status: task.StatusCompleted, Result: []byte(`{"message":"` + message + `","serving_version":"2"}`)}
		if got := ServingText(row); got != want {
			t.Errorf("%s: %q, want %q", message, got, want)
		}
	}
}
