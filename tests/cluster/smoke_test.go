package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The whole of it, on this machine: run by `DAVYLAMP_SMOKE=1 go test`, because it takes a minute and root.
func TestSmoke(t *testing.T) {
	if os.Getenv("DAVYLAMP_SMOKE") == "" {
		t.Skip("set DAVYLAMP_SMOKE=1 to start real clusters")
	}
	before := machine(t)
	first, second := t.TempDir(), t.TempDir()
	// What a failure leaves.
	t.Cleanup(func() {
		for _, dir := range []string{first, second} {
			_ = exec.Command("./cluster", "down", "--dir", dir).Run()
		}
	})

	start := time.Now()
	runCluster(t, "up", "--dir", first)
	t.Logf("up after %s", time.Since(start))
	d, err := readDescription(first)
	if err != nil {
		t.Fatal(err)
	}
	traffic(t, d)
	processes := remember(d)
	components(t, d)
	processes = append(processes, remember(d)...)

	// A second cluster beside it, which ends with the program that started it.
	command := exec.Command("./cluster", "up", "--foreground", "--dir", second)
	command.Stderr = os.Stderr
	input, _ := command.StdinPipe()
	output, _ := command.StdoutPipe()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	path := make([]byte, 1000)
	n, err := output.Read(path)
	if err != nil || string(path[:n]) != filepath.Join(second, "cluster.json")+"\n" {
		t.Fatalf("foreground said %q, %v", path[:n], err)
	}
	other, err := readDescription(second)
	if err != nil {
		t.Fatal(err)
	}
	if other.APIServer == d.APIServer || other.PodSubnet == d.PodSubnet {
		t.Fatalf("two clusters share addresses: %v", other)
	}
	kubectl(t, other, "", "get", "nodes")
	processes = append(processes, remember(other)...)
	input.Close()
	if err := command.Wait(); err != nil {
		t.Fatal(err)
	}
	kubectl(t, d, "", "get", "nodes")

	start = time.Now()
	runCluster(t, "down", "--dir", first)
	t.Logf("down after %s", time.Since(start))
	unchanged(t, before, processes)

	// Ended by force, and so by nobody who could have tidied up.
	runCluster(t, "up", "--dir", first)
	d, _ = readDescription(first)
	traffic(t, d)
	processes = append(processes, remember(d)...)
	_ = syscall.Kill(d.SupervisorPID, syscall.SIGKILL)
	runCluster(t, "down", "--dir", first)
	unchanged(t, before, processes)

	// The program that started a foreground cluster ended by force.
	command = exec.Command("./cluster", "up", "--foreground", "--dir", second)
	output, _ = command.StdoutPipe()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = output.Read(path)
	other, _ = readDescription(second)
	processes = append(processes, remember(other)...)
	_ = command.Process.Kill()
	_ = command.Wait()
	unchanged(t, before, processes)
}

// traffic: pods run, requests are split by weight, the route's status says so, Prometheus finds the pods.
func traffic(t *testing.T, d description) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "server")
	build := exec.Command("go", "build", "-o", program, "./testdata/server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	runCluster(t, "load-image", "--dir", d.Dir, "davylamp.test/smoke:1", program)
	start := time.Now()
	manifest, err := os.ReadFile("testdata/apps.yaml")
	if err != nil {
		t.Fatal(err)
	}
	route, err := os.ReadFile("testdata/route.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := []string{string(route)}
	for _, name := range []string{"stable", "canary"} {
		all = append(all, strings.ReplaceAll(string(manifest), "NAME", name))
	}
	kubectl(t, d, strings.Join(all, "\n---\n"), "apply", "-f", "-")
	for _, name := range []string{"stable", "canary"} {
		kubectl(t, d, "", "rollout", "status", "--timeout=60s", "deployment/"+name)
	}
	t.Logf("pods are ready after %s", time.Since(start))

	soon(t, "the route", func() error {
		var route struct {
			Metadata struct{ Generation int }
			Status   struct {
				Parents []struct {
					Conditions []struct {
						Type, Status       string
						ObservedGeneration int
					}
				}
			}
		}
		text := kubectl(t, d, "", "get", "httproute", "smoke", "-o", "json")
		if err := json.Unmarshal([]byte(text), &route); err != nil {
			return err
		}
		good := 0
		for _, parent := range route.Status.Parents {
			for _, c := range parent.Conditions {
				if (c.Type == "Accepted" || c.Type == "ResolvedRefs") && c.Status == "True" && c.ObservedGeneration == route.Metadata.Generation {
					good++
				}
			}
		}
		if good != 2 {
			return fmt.Errorf("status %+v", route.Status)
		}
		return nil
	})
	// Each Service's endpoints reach the gateway on their own.
	soon(t, "answers of both", func() error {
		seen := map[string]bool{}
		for range 50 {
			answer, err := request(d)
			if err != nil {
				return err
			}
			seen[answer] = true
		}
		if !seen["stable"] || !seen["canary"] {
			return fmt.Errorf("only %v", seen)
		}
		return nil
	})
	counts := map[string]int{}
	for range 200 {
		answer, err := request(d)
		if err != nil {
			t.Fatal(err)
		}
		counts[answer]++
	}
	t.Logf("answers: %v", counts)
	if counts["stable"]+counts["canary"] != 200 || counts["canary"] < 10 || counts["canary"] > 30 {
		t.Fatalf("a split of 90/10 gave %v", counts)
	}

	start = time.Now()
	soon(t, "four targets", func() error {
		return query(d, `count(smoke_up{job="pods",namespace="default",container="app",pod=~".+"})`, "4")
	})
	t.Logf("samples after %s", time.Since(start))
	start = time.Now()
	kubectl(t, d, "", "delete", "httproute/smoke", "deployment/stable", "deployment/canary", "service/stable", "service/canary")
	kubectl(t, d, "", "wait", "--for=delete", "pod", "-l", "app", "--timeout=60s")
	t.Logf("pods are gone after %s", time.Since(start))
}

// components: each can be stopped and started, or paused; service accounts have tokens; the audit log is written.
func components(t *testing.T, d description) {
	t.Helper()
	for name := range d.Programs {
		start := time.Now()
		runCluster(t, "stop", "--dir", d.Dir, name)
		stopped := time.Since(start)
		runCluster(t, "start", "--dir", d.Dir, name)
		t.Logf("%s: stopped in %s, started in %s", name, stopped, time.Since(start)-stopped)
	}
	if err := query(d, `max(max_over_time(smoke_up[10m]))`, "1"); err != nil {
		t.Fatal("Prometheus has lost its data:", err)
	}
	runCluster(t, "pause", "--dir", d.Dir, "prometheus")
	if err := query(d, "1", "1"); err == nil {
		t.Fatal("a paused Prometheus answers")
	}
	runCluster(t, "resume", "--dir", d.Dir, "prometheus")
	if token := kubectl(t, d, "", "create", "token", "default"); strings.Count(token, ".") != 2 {
		t.Fatalf("not a token: %q", token)
	}
	log, err := os.ReadFile(d.AuditLog)
	if err != nil || !strings.Contains(string(log), `"username":"traefik"`) {
		t.Fatalf("audit log without traefik: %v", err)
	}
}

func request(d description) (string, error) {
	r, _ := http.NewRequest("GET", d.Gateway, nil)
	r.Host = "smoke.test"
	return answer(http.DefaultClient.Do(r))
}

func answer(response *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != 200 {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

func query(d description, expression, value string) error {
	client := http.Client{Timeout: 2 * time.Second}
	text, err := answer(client.Get(d.Prometheus + "/api/v1/query?query=" + url.QueryEscape(expression)))
	if err != nil {
		return err
	}
	if !strings.Contains(text, `,"`+value+`"]`) {
		return fmt.Errorf("%s: %s", expression, text)
	}
	return nil
}

func soon(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	if !waitUntil(30*time.Second, func() bool { err = try(); return err == nil }) {
		t.Fatalf("%s: %v", what, err)
	}
}

func runCluster(t *testing.T, arguments ...string) {
	t.Helper()
	if output, err := exec.Command("./cluster", arguments...).CombinedOutput(); err != nil {
		t.Fatalf("cluster %v: %v\n%s", arguments, err, output)
	}
}

func kubectl(t *testing.T, d description, input string, arguments ...string) string {
	t.Helper()
	command := exec.Command(d.Kubectl, append([]string{"--kubeconfig", d.Kubeconfig}, arguments...)...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", arguments, err, output)
	}
	return string(output)
}

// machine is all that a cluster could leave behind.
func machine(t *testing.T) map[string]bool {
	t.Helper()
	things := map[string]bool{}
	for _, command := range [][]string{
		{"cat", "/proc/mounts"}, {"ip", "-oneline", "link"}, {"ip", "netns"}, {"ip", "route"},
		{"sh", "-c", "command -v iptables-save >/dev/null && iptables-save || true"},
		// Groups that a container makes are within its cluster's.
		{"sh", "-c", "find /sys/fs/cgroup -type d -path '*davylamp*' 2>/dev/null || true"},
		{"cut", "-c", "56-", "/proc/net/unix"},
		{"sh", "-c", "cd /proc/sys && grep -r . vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys net/ipv4/ip_forward net/ipv4/conf/all"},
		{"find", "/run", "/var/lib", "/var/log", "/etc", "/opt", "/usr/libexec", "-maxdepth", "3"},
	} {
		output, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", command, err, output)
		}
		for line := range strings.Lines(string(output)) {
			things[command[0]+": "+line] = true
		}
	}
	return things
}

// What a change of the machine must look like to be a cluster's: others are at work, too.
var ours = regexp.MustCompile(`^(ip|sh|cat): |davylamp|containerd|kube|etcd|cni|netns|/pods`)

// remember notes a cluster's processes, all of which must have ended in the end.
func remember(d description) (processes []identity) {
	s := readState(d.Dir)
	for _, pid := range d.PIDs {
		processes = append(processes, identify(pid))
	}
	return append(processes, s.Supervisor, s.First)
}

func unchanged(t *testing.T, before map[string]bool, processes []identity) {
	t.Helper()
	var left []string
	gone := waitUntil(5*time.Second, func() bool {
		left = nil
		for _, process := range processes {
			if process.alive() {
				left = append(left, fmt.Sprintf("process %d\n", process.PID))
			}
		}
		others := otherClusters()
		for thing := range machine(t) {
			if !before[thing] && ours.MatchString(thing) && !others.MatchString(thing) {
				left = append(left, thing)
			}
		}
		return len(left) == 0
	})
	if !gone {
		sort.Strings(left)
		t.Fatalf("left behind:\n%s", strings.Join(left, ""))
	}
}

// otherClusters matches what belongs to clusters that are up now, which the test's own are not.
func otherClusters() *regexp.Regexp {
	patterns := []string{"^$"}
	for slot := range slots {
		if lock, err := lockSlot(slot); err == nil {
			lock.Close()
		} else {
			patterns = append(patterns, fmt.Sprintf(`davylamp(-|-cluster-)?%d\b|\b10\.%d\.0\.`, slot, 88+slot))
		}
	}
	return regexp.MustCompile(strings.Join(patterns, "|"))
}
