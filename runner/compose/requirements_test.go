package compose

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/versions"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// TestRefusedByEngine: what the engine does not have or somebody else has is found
// before anything is changed, with a sentence that names it.
func TestRefusedByEngine(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(one, nil)
	before := b.container("web")

	other := newFixture(t)
	other.up(other.release("1.0", map[string]string{"compose.yaml": other.web("1.0", "    container_name: "+other.project+"-held\n")}, ""), nil)
	_, held, _ := strings.Cut(testenv.DockerOutput(t, "port", other.container("web"), "8080"), ":")
	local := fmt.Sprint(testenv.ServeTCP(t, func(net.Conn, *bufio.Reader) {}))
	byHand := b.project + "-by-hand"
	testenv.DockerOutput(t, "network", "create", "--subnet", "10.213.7.0/28", byHand)
	t.Cleanup(func() { testenv.DockerOutput(t, "network", "rm", byHand) })

	e, err := connect(context.Background(), io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	version, err := e.api.ServerVersion(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	web := b.web("2.0", "")
	for _, c := range []struct {
		name, text string
		want       []string
		before     string // the version of the API that knows it, "" for none
	}{
		{"network missing", web + "    networks: [proxy]\nnetworks: {proxy: {external: true, name: front-proxy-of-nobody}}\n", []string{`external network "front-proxy-of-nobody" of service "web"`, "docker network create"}, ""},
		{"volume missing", web + "    volumes: ['data:/data']\nvolumes: {data: {external: true, name: data-of-nobody}}\n", []string{`external volume "data-of-nobody" of service "web"`, "docker volume create"}, ""},
		{"both missing", web + "    networks: [proxy]\n    volumes: ['data:/data']\nnetworks: {proxy: {external: true, name: a-of-nobody}}\nvolumes: {data: {external: true, name: b-of-nobody}}\n", []string{"a-of-nobody", "b-of-nobody"}, ""},
		{"network by hand", web + "    networks: [n]\nnetworks: {n: {name: " + byHand + "}}\n", []string{byHand, `of service "web"`, "external: true"}, ""},
		{"overlapping subnet", web + "    networks: [n]\nnetworks: {n: {ipam: {config: [{subnet: 10.213.7.0/28}]}}}\n", []string{`network "` + b.project + `_n"`, "overlap"}, ""},
		{"network driver", web + "    networks: [n]\nnetworks: {n: {driver: wrktalk-nosuch}}\n", []string{`network "` + b.project + `_n"`, "wrktalk-nosuch"}, ""},
		{"volume driver", web + "    volumes: ['data:/data']\nvolumes: {data: {driver: wrktalk-nosuch}}\n", []string{`volume "` + b.project + `_data"`, "wrktalk-nosuch"}, ""},
		{"volume options", web + "    volumes: ['data:/data']\nvolumes: {data: {driver_opts: {nosuch: x}}}\n", []string{`volume "` + b.project + `_data"`, "nosuch"}, ""},
		{"container name", web + "    container_name: " + other.project + "-held\n", []string{`service "web"`, "container name", `Compose project "` + other.project + `"`}, ""},
		{"port of another project", strings.Replace(web, "127.0.0.1::8080", held+":8080", 1), []string{`service "web"`, "port " + held + "/tcp", other.project}, ""},
		{"port of this release", strings.Replace(web, "127.0.0.1::8080", "127.0.0.1:40999:8080", 1) + "  two:\n    image: " + b.image + "\n    ports: ['40999:80']\n", []string{"port 40999/tcp", `by service "`, "of this release, too"}, ""},
		{"start_interval", strings.Replace(web, "retries: 3", "retries: 3\n      start_period: 5s\n      start_interval: 1s", 1), []string{`service "web": healthcheck.start_interval needs Docker Engine 25`, version.Version}, "1.44"},
		{"interface_name", web + "    networks: {default: {interface_name: eth7}}\n", []string{`service "web": networks.*.interface_name needs Docker Engine 28.1`}, "1.49"},
		{"mac_address", web + "    networks: {default: {mac_address: '02:00:00:00:00:01'}}\n", []string{`service "web": networks.*.mac_address needs Docker Engine 25`}, "1.44"},
		{"image as volume", web + "    volumes: [{type: image, source: " + b.image + ", target: /i}]\n", []string{`service "web": a volume of type image needs Docker Engine 28`}, "1.48"},
		{"runtime", web + "    runtime: wrktalk-nosuch\n", []string{`service "web"`, "wrktalk-nosuch"}, ""},
		{"log driver", web + "    logging: {driver: wrktalk-nosuch}\n", []string{`service "web"`, "wrktalk-nosuch"}, ""},
		{"device", web + "    devices: ['/dev/wrktalk-nosuch:/dev/x']\n", []string{`service "web"`, "/dev/wrktalk-nosuch"}, ""},
		{"graphics card", web + "    deploy: {resources: {reservations: {devices: [{driver: wrktalk-nosuch, count: 1, capabilities: [gpu]}]}}}\n", []string{`service "web"`, "wrktalk-nosuch"}, ""},
		{"capability", web + "    cap_add: [NOSUCH]\n", []string{`service "web"`, "NOSUCH"}, ""},
		{"too many processors", web + "    cpus: 4096\n", []string{`service "web"`, "CPUs"}, ""},
		{"too little memory", web + "    mem_limit: 1k\n", []string{`service "web"`, "emory limit"}, ""},
		{"mount that is not there", web + "    volumes: [{type: bind, source: /nosuch/wrktalk, target: /x, bind: {create_host_path: false}}]\n", []string{`service "web"`, "/nosuch/wrktalk"}, ""},
		{"mount at a relative path", web + "    volumes: ['n:/n']\nvolumes: {n: }\n", []string{`service "web"`, "mount path must be absolute"}, ""},
		{"two containers of one name", web + "    container_name: twin\n  two: {image: " + b.image + ", container_name: twin}\n", []string{`services "two" and "web" have the same container_name "twin"`}, ""},
		{"scaled with a name", web + "    container_name: only\n    deploy: {replicas: 2}\n", []string{"web", "container_name", "unique"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.before != "" && versions.GreaterThanOrEqualTo(version.APIVersion, c.before) {
				t.Skipf("Docker Engine %s knows it", version.Version)
			}
			res := b.run(b.job(b.release("2.0", map[string]string{"compose.yaml": c.text}, ""), kept(one)))
			failsWith(t, res, c.want...)
			if res.Changed || !strings.Contains(res.Message, "nothing was changed") || res.Serving != "1.0" || b.approvals != 0 || b.container("web") != before {
				t.Errorf("touched: %+v, %d approvals", res, b.approvals)
			}
		})
	}
	t.Run("port of a process", func(t *testing.T) {
		if !e.sharesNetwork() {
			t.Skip("the engine's network is not known to be this one")
		}
		res := b.run(b.job(b.release("2.0", map[string]string{"compose.yaml": strings.Replace(web, "127.0.0.1::8080", "127.0.0.1:"+local+":8080", 1)}, ""), kept(one)))
		failsWith(t, res, `service "web": a process of this host has port `+local+"/tcp")
	})
	for _, kind := range []string{"container", "network", "volume"} {
		args := []string{kind, "ls", "--quiet", "--filter", "label=" + labelTrial + "=" + b.project}
		if kind == "container" {
			args = append(args, "--all")
		}
		if left := testenv.DockerOutput(t, args...); left != "" {
			t.Errorf("a %s is left of a trial: %s", kind, left)
		}
	}
}

// TestNotRefused: what docker compose deploys is deployed, though it looks like a
// conflict.
func TestNotRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "    container_name: "+b.project+"-x\n")}, "")
	b.up(one, nil)
	_, port, _ := strings.Cut(testenv.DockerOutput(t, "port", b.container("web"), "8080"), ":")
	fixed := strings.Replace(b.web("2.0", "    container_name: "+b.project+"-x\n"), "127.0.0.1::8080", "127.0.0.1:"+port+":8080", 1)
	// The port and the name of a container that goes, then of one that is replaced.
	two := b.release("2.0", map[string]string{"compose.yaml": strings.Replace(fixed, "  web:", "  site:", 1)}, "")
	b.up(two, kept(one))
	three := b.release("3.0", map[string]string{"compose.yaml": strings.Replace(strings.Replace(fixed, "  web:", "  site:", 1), `"2.0"`, `"3.0"`, 1)}, "")
	b.up(three, kept(two))
	if got := b.ask("site", "/"); got != "3.0" {
		t.Errorf("site answers %q", got)
	}
	// Ports that are not published, and what the engine is asked about by trial.
	other := newFixture(t)
	other.up(other.release("1.0", map[string]string{"compose.yaml": other.web("1.0", "")}, ""), nil)
	_, held, _ := strings.Cut(testenv.DockerOutput(t, "port", other.container("web"), "8080"), ":")
	const more = `
    mem_limit: 64m
    cap_drop: [ALL]
    tmpfs: [/tmp]
    ipc: private
    networks: {fixed: {ipv4_address: 10.213.9.5}}
  side:
    image: %[1]s
    command: [once]
    network_mode: service:web
    ipc: service:shared
    logging: {driver: local, options: {max-size: 1m}}
  inner: {image: %[1]s, ports: ['%[2]s:80'], networks: [inner]}
  host: {image: %[1]s, ports: ['%[2]s:80'], network_mode: none}
  shared: {image: %[1]s, ipc: shareable, security_opt: ['no-new-privileges:true'], devices: ['/dev/null:/dev/x']}
networks: {fixed: {ipam: {config: [{subnet: 10.213.9.0/28}]}}, inner: {internal: true}}
volumes: {n: {driver_opts: {type: tmpfs, device: tmpfs}}}
`
	four := b.release("4.0", map[string]string{"compose.yaml": b.web("4.0", fmt.Sprintf(more, b.image, held))}, "")
	b.up(four, kept(three))
	b.up(four, four)
}

func TestPortsOverlap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"", "", true},
		{"", "127.0.0.1", true},
		{"0.0.0.0", "127.0.0.1", true},
		{"127.0.0.1", "127.0.0.2", false},
		{"127.0.0.1", "127.0.0.1", true},
		{"::", "0.0.0.0", false},
		{"::", "::1", true},
		{"::1", "127.0.0.1", false},
	} {
		a, b := publishedPort{ip: c.a, port: 80, protocol: "tcp"}, publishedPort{ip: c.b, port: 80, protocol: "tcp"}
		if a.overlaps(b) != c.want || b.overlaps(a) != c.want {
			t.Errorf("%q and %q: %t", c.a, c.b, !c.want)
		}
		b.protocol = "udp"
		if a.overlaps(b) {
			t.Errorf("%q: tcp and udp", c.a)
		}
	}
}
