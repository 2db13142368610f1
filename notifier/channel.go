package notifier

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Channel carries messages to people, with the settings it was opened with.
// Whether and when something is tried again is the notifier's business alone.
type Channel interface {
	// Recipients returns who is to be told now, or NothingToSend.
	Recipients(ctx context.Context) ([]Recipient, error)
	// Send hands m over to its one recipient. An error comes with whether
	// another attempt can help. When ctx ends, Send returns soon; but what the
	// receiver is just accepting it does not cut.
	Send(ctx context.Context, m Message) (retry bool, err error)
}

// Registration is how the notifier knows a channel.
type Registration struct {
	Name string // in deliveries.json: must never change
	Noun string // what it sends, for people: "mail"
	// Open returns the channel with its settings as they are now, or
	// NothingToSend when it has none. Each planning and each attempt opens anew.
	Open func(ctx context.Context) (Channel, error)
}

// Recipient is one that a channel can tell.
type Recipient struct {
	Name    string // for people; may be empty
	Address string // in the channel's own form; upper and lower case are the same
	// IDDomain is what follows the @ in the ids of messages to it; empty for a
	// channel without domains.
	IDDomain string
	Err      error // why nothing can be sent to Address; nil when it can
}

// Message is what one recipient is told about one outcome.
type Message struct {
	Recipient Recipient
	ID        string    // a Message-ID without angle brackets: the same at each attempt
	Date      time.Time // the same at each attempt
	Content
}

// NothingToSend is the error of a channel that nobody is to be told through.
// That is no failure.
type NothingToSend struct {
	Note string // why, for who inspects the task
	Log  string // the same for the log, with what to do about it
}

// Error returns the note.
func (e *NothingToSend) Error() string { return e.Note }

// MessageID returns the id that parts always give, so that a message which is
// repeated after a crash is recognised as the same one.
func MessageID(domain string, parts ...string) string {
	if domain == "" {
		domain = "wrktalk-agent.invalid"
	}
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:20]) + "@" + domain
}

// messageID returns the id of the message that tells address about o.
func messageID(o task.Outcome, address, domain string) string {
	return MessageID(domain, string(o.TaskID), string(o.Token), string(o.Notice()), strings.ToLower(address))
}
