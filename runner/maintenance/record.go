package maintenance

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// recordSchema is the version of the record's layout.
const recordSchema = 1

// record is what the agent switched on and may have to switch off. It is on disk
// from before the one until after the other, so that the process that follows a
// crash knows what to undo. A page without a record is someone else's.
type record struct {
	Schema    int       `json:"schema"`
	Owner     string    `json:"owner"`
	EnteredAt time.Time `json:"entered_at"`
	// Confirmed is true once switching, and the probe where there is one, has
	// succeeded.
	Confirmed bool   `json:"confirmed"`
	Target    target `json:"target"`

	// Content is the content of the flag file, FlagTime its modification time: an
	// operator's touch changes the latter and thereby makes the file theirs.
	Content  string    `json:"mark"`
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
		Content: fmt.Sprintf("wrktalk-agent %s %s\n", rand.Text(), owner),
		// Even seconds are what every file system can keep.
		FlagTime: now.Truncate(2 * time.Second),
	}
}

// maxRecord bounds a record, in bytes.
const maxRecord = 4 << 20

// recordFile is where the record lives.
type recordFile string

// load returns nil when there is no record. It reads none that others could have
// written: a record names commands to run.
func (f recordFile) load() (*record, error) {
	file, err := os.OpenFile(string(f), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read maintenance record: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read maintenance record: %w", err)
	}
	if user := foreignUser(info); user != "" || !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("read maintenance record %s: others than the agent's user may have written it (mode %s, %s): switch the page off by hand and remove the file",
			string(f), info.Mode(), cmp.Or(user, "the agent's user"))
	}
	b, err := io.ReadAll(io.LimitReader(file, maxRecord))
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

// save creates the state directory where there is none.
func (f recordFile) save(r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode maintenance record: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(string(f)), 0o700); err != nil {
		return fmt.Errorf("keep maintenance record: %w", err)
	}
	err = inDirectoryOf(string(f), func(dir *os.Root, name string) error {
		return durable.WriteFile(dir, name, append(b, '\n'), 0o600)
	})
	if err != nil {
		return fmt.Errorf("keep maintenance record: %w", err)
	}
	return nil
}

// checkDirectory returns an error if save could not write: without a record,
// nothing is switched.
func (f recordFile) checkDirectory() error {
	dir := filepath.Dir(string(f))
	for _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && dir != "/"; _, err = os.Stat(dir) {
		dir = filepath.Dir(dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("the record of the page cannot be kept in the state directory %s: %s: %w", filepath.Dir(string(f)), dir, err)
	}
	return nil
}

func (f recordFile) remove() error {
	if err := inDirectoryOf(string(f), removeExisting); err != nil {
		return fmt.Errorf("keep maintenance record: %w", err)
	}
	return nil
}

// removeExisting removes a file durably. One that does not exist is no error.
func removeExisting(dir *os.Root, name string) error {
	if err := durable.Remove(dir, name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// inDirectoryOf calls do with the directory of path, and the file's name there.
func inDirectoryOf(path string, do func(dir *os.Root, name string) error) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(do(dir, filepath.Base(path)), dir.Close())
}
