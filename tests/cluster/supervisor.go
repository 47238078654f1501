package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// supervisor owns a cluster's processes. It is started by `up`, whose pipes are its standard input and output:
// it says "ready" on the latter, and takes the cluster down when the former closes before a line "detach" came.
type supervisor struct {
	cluster    *cluster
	tools      *tools
	namespaces *namespaces
	components []component

	mutex     sync.Mutex
	processes map[string]*process
}

type process struct {
	command *exec.Cmd
	exited  chan struct{} // closed when it has ended
	paused  bool
}

// supervise is the whole life of a cluster.
func supervise(dir string) error {
	// Held by this process only, not by what it starts: the lock on the folder, which `up` has passed on.
	syscall.CloseOnExec(3)
	// Nobody may listen to the standard output any more.
	signal.Ignore(syscall.SIGPIPE)
	end := make(chan string, 4)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() { end <- fmt.Sprint("signal: ", <-signals) }()
	go func() {
		if line, _ := bufio.NewReader(os.Stdin).ReadString('\n'); line != "detach\n" {
			end <- "the program that started the cluster has ended, or wants it to end"
		}
	}()
	go func() {
		if err := bringUp(dir, end); err != nil {
			end <- err.Error()
			return
		}
		fmt.Println("ready")
	}()
	reason := <-end
	fmt.Println(reason)
	fmt.Fprintln(os.Stderr, "taking the cluster down:", reason)
	outside.Lock() // for ever: nothing is added any more
	return sweep(dir)
}

// outside is held while something is added that the end of the namespaces does not remove.
var outside sync.Mutex

// prepare makes the cluster's files, network and namespaces.
func prepare(dir string) (*cluster, *namespaces, error) {
	outside.Lock()
	defer outside.Unlock()
	c, err := findSlot(dir)
	if err != nil {
		return nil, nil, err
	}
	state := state{Slot: c.Slot, Cgroups: cgroups(c.Slot), Supervisor: identify(os.Getpid())}
	writeState := func() error { return writeJSON(filepath.Join(dir, "state.json"), state) }
	enterCgroups := func() error { return enterCgroups(state.Cgroups) }
	if err := inOrder(writeState, c.writeConfig, c.addNetwork, enterCgroups); err != nil {
		return nil, nil, err
	}
	namespaces, err := newNamespaces(os.Stderr)
	if err != nil {
		return nil, nil, err
	}
	state.First = identify(namespaces.first.Process.Pid)
	return c, namespaces, writeState()
}

// bringUp starts everything and returns when the cluster can be used.
func bringUp(dir string, end chan<- string) error {
	tools, err := prepareTools()
	if err != nil {
		return err
	}
	cluster, namespaces, err := prepare(dir)
	if err != nil {
		return err
	}
	go func() { end <- fmt.Sprint("the namespaces' first process ended: ", namespaces.first.Wait()) }()
	client, err := cluster.newClient(namespaces.root())
	if err != nil {
		return err
	}
	s := &supervisor{
		cluster: cluster, tools: tools, namespaces: namespaces,
		components: cluster.components(tools, client), processes: map[string]*process{},
	}
	start := func(name string) func() error { return func() error { return s.start(name) } }

	runtime := func() error {
		if err := s.start("containerd"); err != nil {
			return err
		}
		archive, err := imageArchive("davylamp.test/pause:1", ownProgram(), "pause")
		if err != nil {
			return err
		}
		return importImage(archive, "/", namespaces.start)
	}
	controlPlane := func() error { return inOrder(start("etcd"), start("kube-apiserver")) }
	gateway := func() error {
		return inOrder(func() error { return cluster.createGateway(tools, client) }, start("traefik"))
	}
	err = inOrder(
		func() error { return atOnce(runtime, controlPlane) },
		func() error {
			return atOnce(start("kube-controller-manager"), start("kube-scheduler"), start("kubelet"), start("prometheus"), gateway)
		},
		s.describe,
	)
	if err != nil {
		return err
	}
	return s.listen()
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func atOnce(steps ...func() error) error {
	results := make(chan error)
	for _, step := range steps {
		go func() { results <- step() }()
	}
	for range steps {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

// start starts a component, unless it runs, and returns when it is ready.
func (s *supervisor) start(name string) error {
	index := slices.IndexFunc(s.components, func(c component) bool { return c.name == name })
	component := s.components[index]
	started := time.Now()
	p, err := s.launch(component)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	err = eventually(func() error {
		select {
		case <-p.exited:
			return nil
		default:
			return component.ready()
		}
	})
	select {
	case <-p.exited:
		err = errors.New("it ended: " + p.command.ProcessState.String())
	default:
	}
	if err != nil {
		return fmt.Errorf("%s: %w; see %s", name, err, s.logPath(name))
	}
	fmt.Fprintf(os.Stderr, "%s %s is ready after %s\n", time.Now().Format(time.TimeOnly), name, time.Since(started).Round(time.Millisecond))
	return nil
}

func (s *supervisor) logPath(name string) string {
	return filepath.Join(s.cluster.Logs(), name+".log")
}

func (s *supervisor) launch(c component) (*process, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if p := s.processes[c.name]; p != nil && p.running() {
		return p, nil
	}
	log, err := os.OpenFile(s.logPath(c.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command(c.program, c.arguments...)
	command.Dir = "/"
	// Nothing of the environment changes how the components behave, proxies above all.
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/var/lib"}
	command.Stdout, command.Stderr = log, log
	if err := s.namespaces.start(command); err != nil {
		return nil, err
	}
	p := &process{command: command, exited: make(chan struct{})}
	s.processes[c.name] = p
	go func() {
		_ = command.Wait()
		fmt.Fprintf(os.Stderr, "%s %s ended: %s\n", time.Now().Format(time.TimeOnly), c.name, command.ProcessState)
		close(p.exited)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// stop ends a component and returns when it has ended. The API server, and etcd, would wait for their watchers.
func (s *supervisor) stop(p *process) {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	s.signal(p, syscall.SIGCONT)
	select {
	case <-p.exited:
	case <-time.After(3 * time.Second):
		_ = p.command.Process.Kill()
		<-p.exited
	}
}

// signal pauses or resumes a component.
func (s *supervisor) signal(p *process, signal syscall.Signal) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	p.paused = signal == syscall.SIGSTOP
	_ = p.command.Process.Signal(signal)
}

// listen answers the commands status, start, stop, pause and resume, in DIR/control.sock.
func (s *supervisor) listen() error {
	// By a short name, because the path of a socket may have 108 characters at most.
	if err := os.Chdir(s.cluster.Dir); err != nil {
		return err
	}
	listener, err := net.Listen("unix", "control.sock")
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer, err := s.answer(strings.TrimPrefix(r.URL.Path, "/"), r.FormValue("component"))
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				answer = err.Error()
			}
			_, _ = io.WriteString(w, answer)
		}))
	}()
	return nil
}

func (s *supervisor) answer(command, name string) (string, error) {
	if command == "status" {
		return s.status(), nil
	}
	if !slices.ContainsFunc(s.components, func(c component) bool { return c.name == name }) {
		return "", fmt.Errorf("no component %q; `cluster help` lists them", name)
	}
	s.mutex.Lock()
	p := s.processes[name]
	s.mutex.Unlock()
	switch {
	case command == "start":
		if err := s.start(name); err != nil {
			return "", err
		}
	case !p.running():
		return "", fmt.Errorf("%s does not run", name)
	case command == "stop":
		s.stop(p)
	case command == "pause":
		s.signal(p, syscall.SIGSTOP)
	case command == "resume":
		s.signal(p, syscall.SIGCONT)
	}
	return "", s.describe()
}

func (s *supervisor) status() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var table strings.Builder
	for _, c := range s.components {
		p := s.processes[c.name]
		what := fmt.Sprintf("runs, process %d", p.command.Process.Pid)
		switch {
		case !p.running():
			what = fmt.Sprintf("ended: %s; log: %s", p.command.ProcessState, s.logPath(c.name))
		case p.paused:
			what = fmt.Sprintf("paused, process %d", p.command.Process.Pid)
		}
		fmt.Fprintf(&table, "%-24s %s\n", c.name, what)
	}
	return table.String()
}

// description is cluster.json: what programs need to use the cluster.
type description struct {
	Dir           string            `json:"dir"`
	Kubeconfig    string            `json:"kubeconfig"`
	Kubectl       string            `json:"kubectl"`
	APIServer     string            `json:"api_server"`
	Gateway       string            `json:"gateway"`
	Prometheus    string            `json:"prometheus"`
	AuditLog      string            `json:"audit_log"`
	Logs          string            `json:"logs"`
	Node          string            `json:"node"`
	PodSubnet     string            `json:"pod_subnet"`
	HostAddress   string            `json:"host_address"`
	SupervisorPID int               `json:"supervisor_pid"`
	PIDs          map[string]int    `json:"pids"`
	Programs      map[string]string `json:"programs"`
}

func (s *supervisor) describe() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	c := s.cluster
	d := description{
		Dir: c.Dir, Kubeconfig: c.Kubeconfig(), Kubectl: filepath.Join(s.tools.Kubernetes, "kubectl"),
		APIServer: c.APIServer(), Gateway: c.Gateway(), Prometheus: c.Prometheus(),
		AuditLog: c.AuditLog(), Logs: c.Logs(), Node: nodeName, PodSubnet: c.PodSubnet(), HostAddress: c.HostAddress(),
		SupervisorPID: os.Getpid(), PIDs: map[string]int{}, Programs: map[string]string{},
	}
	for _, component := range s.components {
		d.Programs[component.name] = component.program
		if p := s.processes[component.name]; p.running() {
			d.PIDs[component.name] = p.command.Process.Pid
		}
	}
	return writeJSON(filepath.Join(c.Dir, "cluster.json"), d)
}

// ask sends a command to a cluster's supervisor.
func ask(dir, command, component string) error {
	notUp := fmt.Errorf("no cluster is up in %s; start one with `cluster up`", dir)
	if os.Chdir(dir) != nil {
		return notUp
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", "control.sock")
	}}}
	response, err := client.Get("http://supervisor/" + command + "?component=" + url.QueryEscape(component))
	if err != nil {
		return notUp
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(string(text))
	}
	fmt.Print(string(text))
	return nil
}

// readDescription reads cluster.json.
func readDescription(dir string) (d description, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	return d, err
}
