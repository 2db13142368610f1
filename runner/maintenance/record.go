package maintenance

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// recordSchema is the version of the record's layout.
const recordSchema = 1

// record is what the agent remembers while a page that it switched on may be on.
// It is on disk before the switch is touched and removed after it was put back,
// so that whoever comes after a crash knows what to undo. A page without a
// record is someone else's.
type record struct {
	Schema    int       `json:"schema"`
	Owner     string    `json:"owner"`
	EnteredAt time.Time `json:"entered_at"`
	// Confirmed is true once the switch, and the probe where there is one,
	// succeeded.
	Confirmed bool   `json:"confirmed"`
	Target    target `json:"target"`

	// Mark is the content of the flag file, FlagTime its modification time: an
	// operator's touch changes the latter and thereby makes the file his.
	Mark     string    `json:"mark"`
	FlagTime time.Time `json:"flag_time"`

	// Servers are those which the agent put into maintenance.
	Servers []server `json:"servers,omitempty"`
}

// target is what was switched: enough to undo it even if the configuration has
// changed since.
type target struct {
	Handler         string `json:"handler"`
	FlagFile        string `json:"flag_file,omitempty"`
	ReloadCommand   string `json:"reload_command,omitempty"`
	LeaveCommand    string `json:"leave_command,omitempty"`
	Socket          string `json:"haproxy_socket,omitempty"`
	Backend         string `json:"haproxy_backend,omitempty"`
	ServerStateFile string `json:"haproxy_state_file,omitempty"`
}

// server is one of HAProxy's, and the state it goes back to.
type server struct {
	Name    string `json:"name"`
	Restore string `json:"restore"` // ready or drain
}

func newRecord(owner string, t target) *record {
	now := time.Now().UTC()
	return &record{
		Schema: recordSchema, Owner: owner, EnteredAt: now, Target: t,
		Mark: fmt.Sprintf("wrktalk-agent %s %s\n", rand.Text(), owner),
		// Even seconds are what every file system can keep.
		FlagTime: now.Truncate(2 * time.Second),
	}
}

// recordFile is where the record lives.
type recordFile string

// load returns nil when there is no record.
func (f recordFile) load() (*record, error) {
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read maintenance record: %w", err)
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read maintenance record %s: %w: switch the page off by hand and remove the file", string(f), err)
	}
	if r.Schema != recordSchema {
		return nil, fmt.Errorf("read maintenance record %s: its schema is %d, not %d: switch the page off by hand and remove the file",
			string(f), r.Schema, recordSchema)
	}
	return r, nil
}

func (f recordFile) save(r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode maintenance record: %w", err)
	}
	return f.in(func(dir *os.Root, name string) error {
		return durable.WriteFile(dir, name, append(b, '\n'), 0o600)
	})
}

func (f recordFile) remove() error {
	return f.in(func(dir *os.Root, name string) error {
		if err := durable.Remove(dir, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func (f recordFile) in(do func(dir *os.Root, name string) error) error {
	dir, err := os.OpenRoot(filepath.Dir(string(f)))
	if err == nil {
		err = errors.Join(do(dir, filepath.Base(string(f))), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("keep maintenance record: %w", err)
	}
	return nil
}
