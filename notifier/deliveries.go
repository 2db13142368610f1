package notifier

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// DeliveriesFile is the file in a task's directory that says who was told.
const DeliveriesFile = "deliveries.json"

const (
	deliveriesSchema = 1
	// firstChannel is the one that deliveries without a channel went through:
	// older versions of the agent knew no other.
	firstChannel = "smtp"
)

// State is how far a delivery is.
type State string

// The states of a delivery. Sent and failed are final.
const (
	StatePending State = "pending"
	StateSent    State = "sent"
	StateFailed  State = "failed"
)

// Delivery is one message through one channel to one recipient.
type Delivery struct {
	Channel   string    `json:"channel"`
	Address   string    `json:"address"`
	Name      string    `json:"name,omitempty"`
	MessageID string    `json:"message_id,omitempty"` // without angle brackets
	State     State     `json:"state"`
	Attempts  int       `json:"attempts"`
	NextTry   time.Time `json:"next_try,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Deliveries is the record of what became of a task's messages. It is written
// before the first is sent and after each result, so that a crash repeats at most
// those that were in flight, under the same Message-ID.
type Deliveries struct {
	Schema    int        `json:"schema"`
	CreatedAt time.Time  `json:"created_at"` // the messages' date, and when their age begins
	Note      string     `json:"note,omitempty"`
	List      []Delivery `json:"deliveries"`
}

// Done reports whether nothing is left to be sent.
func (l *Deliveries) Done() bool {
	return !slices.ContainsFunc(l.List, func(d Delivery) bool { return d.State == StatePending })
}

// ReadDeliveries returns the record of a task's deliveries, or an error that is
// fs.ErrNotExist when its recipients are not known yet.
func ReadDeliveries(t *staging.Task) (*Deliveries, error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	data, err := readBounded(root)
	if err != nil {
		return nil, fmt.Errorf("read deliveries of %s: %w", t.Name, err)
	}
	l := new(Deliveries)
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("decode deliveries of %s: %w: %w", t.Name, errMalformed, err)
	}
	if l.Schema < 1 || l.Schema > deliveriesSchema {
		return nil, fmt.Errorf("decode deliveries of %s: %w: schema %d; this agent reads up to %d",
			t.Name, errMalformed, l.Schema, deliveriesSchema)
	}
	for i := range l.List {
		if l.List[i].Channel == "" {
			l.List[i].Channel = firstChannel
		}
	}
	return l, nil
}

var errMalformed = errors.New("malformed")

func readBounded(root *os.Root) ([]byte, error) {
	const limit = 16 << 20
	f, err := root.Open(DeliveriesFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// write keeps the record durably in the task's directory.
func (l *Deliveries) write(t *staging.Task) error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode deliveries of %s: %w", t.Name, err)
	}
	root, err := t.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := durable.WriteFile(root, DeliveriesFile, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("record deliveries of %s: %w", t.Name, err)
	}
	return nil
}

// add plans a message to each recipient of a channel. What cannot be sent has
// failed at once; an address that occurs twice is told once.
func (l *Deliveries) add(channel string, o task.Outcome, recipients []Recipient, log *slog.Logger) {
	seen := map[string]bool{}
	for _, r := range recipients {
		d := Delivery{
			Channel: channel, Address: r.Address, Name: r.Name, State: StatePending,
			NextTry: l.CreatedAt, UpdatedAt: l.CreatedAt,
		}
		if r.Err != nil {
			d.State, d.NextTry, d.LastError = StateFailed, time.Time{}, r.Err.Error()
			log.Error("cannot mail an active administrator: correct the address in table admin",
				"recipient", d.Address, "error", d.LastError)
		} else {
			d.MessageID = messageID(o, r.Address, r.IDDomain)
		}
		if key := strings.ToLower(d.Address); !seen[key] {
			seen[key] = true
			l.List = append(l.List, d)
		}
	}
}

// loadDeliveries is ReadDeliveries for the loop: without a readable record it returns
// nil, and the recipients are found anew; the Message-IDs will be the same.
func loadDeliveries(t *staging.Task, log *slog.Logger) (*Deliveries, error) {
	l, err := ReadDeliveries(t)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, errMalformed):
		log.Warn("begin a new record of deliveries; mails may be repeated", "error", err)
		return nil, nil
	}
	return l, err
}
