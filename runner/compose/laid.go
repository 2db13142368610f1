package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
)

// record is what the agent knows of a project's files. It is on the disk before a
// file is touched, so that what an interrupted process laid out is known to be the
// agent's and the next one ends the work.
type record struct {
	// Bundle is the release whose files are laid out, "" for none. Laying is the
	// one whose files were being laid out over it, "" when nothing was.
	Bundle string `json:"bundle"`
	Laying string `json:"laying,omitempty"`
	// Files has by path what the agent laid there, and Next what it was laying there.
	Files map[string]entry `json:"files"`
	Next  map[string]entry `json:"next,omitempty"`
	// Former is where, below the working directory, the project directory lay in the
	// former layout.
	Former string `json:"former,omitempty"`
}

func (s *store) readRecord(project string) (record, error) {
	r := record{Files: map[string]entry{}}
	data, err := s.root.ReadFile(path.Join(recordsDir, project+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read what was laid out for project %s: %w", project, err)
	}
	if r.Files == nil {
		r.Files = map[string]entry{}
	}
	return r, nil
}

func (s *store) writeRecord(project string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.root, path.Join(recordsDir, project+".json"), data, 0o600); err != nil {
		return fmt.Errorf("note what is laid out: %w", err)
	}
	return nil
}
