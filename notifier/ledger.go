package notifier

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/mail"
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

const ledgerSchema = 1

// State is how far a delivery is.
type State string

// The states of a delivery. Sent and failed are final.
const (
	StatePending State = "pending"
	StateSent    State = "sent"
	StateFailed  State = "failed"
)

// Delivery is one mail to one recipient.
type Delivery struct {
	Address   string    `json:"address"`
	Name      string    `json:"name,omitempty"`
	MessageID string    `json:"message_id,omitempty"` // without angle brackets
	State     State     `json:"state"`
	Attempts  int       `json:"attempts"`
	NextTry   time.Time `json:"next_try,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Ledger is the record of a task's deliveries. It is written before the first
// mail and after each result, so that a crash repeats at most the mails that
// were under way, under the same Message-ID.
type Ledger struct {
	Schema     int        `json:"schema"`
	CreatedAt  time.Time  `json:"created_at"` // the mails' date, and when their age begins
	Note       string     `json:"note,omitempty"`
	Deliveries []Delivery `json:"deliveries"`
}

// Settled reports whether nothing is left to be sent.
func (l *Ledger) Settled() bool {
	return !slices.ContainsFunc(l.Deliveries, func(d Delivery) bool { return d.State == StatePending })
}

// ReadLedger returns the record of a task's deliveries, or an error that is
// fs.ErrNotExist when its recipients are not known yet.
func ReadLedger(t *staging.Task) (*Ledger, error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	data, err := readBounded(root)
	if err != nil {
		return nil, fmt.Errorf("read deliveries of %s: %w", t.Name, err)
	}
	l := new(Ledger)
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("decode deliveries of %s: %w: %w", t.Name, errMalformed, err)
	}
	if l.Schema < 1 || l.Schema > ledgerSchema {
		return nil, fmt.Errorf("decode deliveries of %s: %w: schema %d; this agent reads up to %d",
			t.Name, errMalformed, l.Schema, ledgerSchema)
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

// write keeps the ledger durably in the task's directory.
func (l *Ledger) write(t *staging.Task) error {
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

// newLedger fixes who is told about o. Addresses that nobody can send to are
// final at once; an address that occurs twice gets one mail.
func newLedger(o task.Outcome, admins []Recipient, from *mail.Address, now time.Time, log *slog.Logger) *Ledger {
	l := &Ledger{Schema: ledgerSchema, CreatedAt: now, Deliveries: []Delivery{}}
	seen := map[string]bool{}
	for _, r := range admins {
		d := Delivery{Address: strings.TrimSpace(r.Address), Name: word(r.Name, ""), State: StatePending, NextTry: now, UpdatedAt: now}
		a, err := parseAddress(r.Address)
		if err != nil {
			d.Address = word(d.Address, "(empty)")
			d.State, d.NextTry = StateFailed, time.Time{}
			d.LastError = "not a mail address: " + err.Error()
			log.Error("cannot mail an active administrator: correct the address in table admin",
				"recipient", d.Address, "error", d.LastError)
		} else {
			d.Address, d.MessageID = a.Address, messageID(o, a.Address, from)
			if d.Name == "" {
				d.Name = word(a.Name, "")
			}
		}
		if key := strings.ToLower(d.Address); !seen[key] {
			seen[key] = true
			l.Deliveries = append(l.Deliveries, d)
		}
	}
	return l
}

// loadLedger is ReadLedger for the loop: without a readable record it returns
// nil, and the recipients are found anew; the Message-IDs will be the same.
func loadLedger(t *staging.Task, log *slog.Logger) (*Ledger, error) {
	l, err := ReadLedger(t)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, errMalformed):
		log.Warn("begin a new record of deliveries; mails may be repeated", "error", err)
		return nil, nil
	}
	return l, err
}
