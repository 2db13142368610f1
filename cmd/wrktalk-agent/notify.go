package main

import (
	"context"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
	"github.com/wrktalk/wrktalk-agent/notifier/smtp"
)

// channels returns what carries messages about outcomes to people.
func channels(db *taskdb.DB, cfg *config.Config) []notifier.Registration {
	settings := func(ctx context.Context) (taskdb.MailSettings, error) {
		return db.MailSettings(ctx, deploymentOf(cfg).target)
	}
	return []notifier.Registration{smtp.Register(settings, db.ActiveAdmins, transport(cfg))}
}

func transport(cfg *config.Config) smtp.Transport {
	t := smtp.Transport{
		TLS: smtp.TLSMode(cfg.Notify.TLS), CAFile: cfg.Notify.CAFile,
		Helo: cfg.Notify.Helo, Timeout: cfg.Notify.Timeout,
	}
	if n := cfg.Notify; n.OAuthTokenURL != "" {
		t.OAuth = &smtp.OAuth{TokenURL: n.OAuthTokenURL, ClientID: n.OAuthClientID, Secret: n.OAuthClientSecret.Reveal(), Scope: n.OAuthScope}
	}
	return t
}

// origin says where a mail comes from.
func origin(cfg *config.Config) notifier.Origin {
	return notifier.Origin{Host: hostname(), Target: deploymentOf(cfg).description}
}

// keepRecords is how long the agent's own schema keeps events, attempts and deliveries.
const keepRecords = 90 * 24 * time.Hour

// record is a delivery as the agent's own schema has it.
func record(id task.ID, d notifier.Delivery) taskdb.Delivery {
	m := taskdb.Delivery{TaskID: id, Recipient: d.Address, MessageID: d.MessageID, State: string(d.State), Attempts: d.Attempts}
	if d.State == notifier.StatePending {
		m.State = "queued"
	}
	if m.MessageID == "" { // nothing can be sent to the address
		m.MessageID = "none for task " + string(id)
	}
	return m
}

func notifierOptions(c *component, mirror *taskdb.DeliveryMirror) notifier.Options {
	return notifier.Options{
		Channels: channels(c.db, c.cfg), Origin: origin(c.cfg),
		MaxAge: c.cfg.Notify.MaxAge, Rescan: c.cfg.Agent.PollInterval, Keep: c.cfg.Staging.Keep,
		OnDelivery: func(id task.ID, d notifier.Delivery) { mirror.Record(record(id, d)) },
		OnDone:     mirror.Prune,
		History:    pastRuns(c.cfg).Keep,
		Timeline:   c.timeline.For, Ready: c.pipe.Ready, Alive: c.alive, Metrics: c.pipe.Record, Log: c.log,
	}
}
