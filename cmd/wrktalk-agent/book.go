package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// book looks settings and recipients up in the database, for the notifier.
type book struct {
	db     *taskdb.DB
	target taskdb.Target
}

func newBook(db *taskdb.DB, cfg *config.Config) *book { return &book{db: db, target: target(cfg)} }

func (b *book) MailSettings(ctx context.Context) (notifier.Settings, error) {
	m, err := b.db.MailSettings(ctx, b.target)
	return notifier.Settings{Host: m.Host, Port: m.Port, User: m.User, Password: m.Password, From: m.From}, err
}

func (b *book) ActiveAdmins(ctx context.Context) ([]notifier.Recipient, error) {
	admins, err := b.db.ActiveAdmins(ctx)
	recipients := make([]notifier.Recipient, len(admins))
	for i, a := range admins {
		recipients[i] = notifier.Recipient{Name: a.Name, Address: a.Email}
	}
	return recipients, err
}

func transport(cfg *config.Config) notifier.Transport {
	return notifier.Transport{
		TLS: notifier.TLSMode(cfg.Notify.TLS), CAFile: cfg.Notify.CAFile,
		Helo: cfg.Notify.Helo, Timeout: cfg.Notify.Timeout,
	}
}

// origin says where a mail comes from.
func origin(cfg *config.Config) notifier.Origin {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	o := notifier.Origin{Host: host, Target: fmt.Sprintf("Compose project %s", cfg.Compose.ProjectName)}
	if cfg.Agent.DeploymentType == task.DeploymentKubernetes {
		o.Target = fmt.Sprintf("Helm release %s in namespace %s", cfg.Helm.ReleaseName, cfg.Kube.Namespace)
	}
	return o
}

// keepRecords is how long the agent's own schema keeps events, attempts and mails.
const keepRecords = 90 * 24 * time.Hour

// record is a delivery as the agent's own schema has it.
func record(id task.ID, d notifier.Delivery) taskdb.Mail {
	m := taskdb.Mail{TaskID: id, Recipient: d.Address, MessageID: d.MessageID, State: string(d.State), Attempts: d.Attempts}
	if d.State == notifier.StatePending {
		m.State = "queued"
	}
	if m.MessageID == "" { // no mail was made: the address is none
		m.MessageID = "none for task " + string(id)
	}
	return m
}

func notifierOptions(c *component, outbox *taskdb.Outbox) notifier.Options {
	return notifier.Options{
		Transport: transport(c.cfg), Origin: origin(c.cfg),
		MaxAge: c.cfg.Notify.MaxAge, Rescan: c.cfg.Agent.PollInterval, Keep: c.cfg.Staging.Keep,
		Outbox:   func(id task.ID, d notifier.Delivery) { outbox.Record(record(id, d)) },
		Settled:  outbox.Prune,
		Timeline: c.timeline.For, Ready: c.line.Ready, Meter: c.line.Measure, Log: c.log,
	}
}
