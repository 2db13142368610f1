package compose

import "testing"

// TestRestarts: how often a container was restarted decides nothing, and one that
// ends with 0 again and again does so on purpose.
func TestRestarts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]string{
		"crashes until its database is up": "    command: [start, '6', /n/starts]\n    restart: 'on-failure:10'\n    volumes: ['count:/n']\n",
		"is healthy in the end":            "    command: [start, '6', /n/starts]\n    restart: always\n    volumes: ['count:/n']\n    healthcheck: {test: [CMD, /app, health], interval: 200ms, timeout: 30s, retries: 3}\n",
		"loops by design":                  "    command: [once]\n    restart: always\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			if name == "is healthy in the end" { // and is awaited by another service
				c += "  after: {image: " + b.image + ", stop_grace_period: 1s, depends_on: {worker: {condition: service_healthy}}}\n"
			}
			text := "volumes: {count: }\n" + b.web("1.0", "  worker:\n    image: "+b.image+"\n    stop_grace_period: 1s\n"+c)
			one := b.release("1.0", map[string]string{"compose.yaml": text}, "")
			b.up(one, nil)
			// What the next release leaves alone has nothing to prove to it.
			b.up(b.release("2.0", map[string]string{"compose.yaml": text + "x-two: 2\n"}, ""), kept(one))
		})
	}
}
