package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What of a cluster exists outside its namespaces: two processes (the supervisor and the namespaces' first process,
// whose death ends all others), a network bridge, cgroups, files in the cluster's folder. This removes them, after a
// cluster that ended as it should and after one that did not.

// state is what that takes to know, in DIR/state.json from the start.
type state struct {
	Slot       int      `json:"slot"`
	Cgroups    []string `json:"cgroups"`
	Supervisor identity `json:"supervisor"`
	First      identity `json:"first_process"`
}

// identity is a process and not another one that got its number later.
type identity struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"`
}

func identify(pid int) identity {
	started, _ := readStart(pid)
	return identity{pid, started}
}

// readStart reads when a process started, in ticks since boot; ok is false when there is no such process, or only
// its exit status waits to be read.
func readStart(pid int) (started uint64, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The name, in parentheses, may contain anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return started, err == nil && fields[0] != "Z"
}

func (i identity) alive() bool {
	started, ok := readStart(i.PID)
	return i.PID != 0 && ok && started == i.Started
}

// signal reaches this very process or none.
func (i identity) signal(signal syscall.Signal) {
	process, err := os.FindProcess(i.PID) // holds on to the process, if there is one
	if err == nil && i.alive() {
		_ = process.Signal(signal)
	}
}

// waitUntil polls what gives no notice.
func waitUntil(limit time.Duration, done func() bool) bool {
	for deadline := time.Now().Add(limit); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// lockFolder takes the folder for a cluster. Supervisor and `up` hold the lock while the cluster exists.
func lockFolder(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, errLocked
	}
	return file, nil
}

var errLocked = errors.New("in use")

// down takes a cluster down, whatever state it is in.
func down(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "no cluster in", dir)
		return nil
	}
	var lock *os.File
	free := func() bool {
		var err error
		lock, err = lockFolder(dir)
		return !errors.Is(err, errLocked)
	}
	supervisor := readState(dir).Supervisor
	supervisor.signal(syscall.SIGTERM)
	if !waitUntil(20*time.Second, free) {
		supervisor.signal(syscall.SIGKILL)
		if !waitUntil(5*time.Second, free) {
			return fmt.Errorf("the cluster in %s does not end; its supervisor is process %d", dir, supervisor.PID)
		}
	}
	defer lock.Close()
	return sweep(dir)
}

func readState(dir string) (s state) {
	text, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err == nil {
		_ = json.Unmarshal(text, &s)
	}
	return s
}

// sweep removes what is left of the cluster in this folder; the caller holds the folder's lock. Logs are kept.
func sweep(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "state.json")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s := readState(dir)
	s.First.signal(syscall.SIGKILL)
	if !waitUntil(20*time.Second, func() bool { return !s.First.alive() }) {
		return fmt.Errorf("process %d, which holds the cluster's namespaces, does not end", s.First.PID)
	}
	c := newCluster(dir, s.Slot)
	if slotLock == nil {
		// Another cluster that has this slot by now has removed the network before it made its own.
		if lock, err := lockSlot(s.Slot); err == nil {
			defer lock.Close()
			c.removeOutside(s.Cgroups)
		}
	} else {
		leaveCgroups(s.Cgroups)
		c.removeOutside(s.Cgroups)
	}
	for _, name := range []string{"cluster.json", "control.sock", "kubeconfig", "config", "state.json"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// removeOutside removes the slot's bridge and control groups, if there are any; the caller holds the slot.
func (c *cluster) removeOutside(cgroups []string) {
	if _, err := os.Stat("/sys/class/net/" + c.Bridge()); err == nil {
		_ = exec.Command("ip", "link", "delete", c.Bridge()).Run()
	}
	for _, folder := range cgroups {
		waitUntil(2*time.Second, func() bool { return removeCgroup(folder) })
	}
}

// addNetwork makes the bridge that pods are attached to. The machine has an address on it and so reaches the pods;
// there is no forwarding and no firewall rule, so pods reach nothing else.
func (c *cluster) addNetwork() error {
	for _, arguments := range [][]string{
		{"link", "add", c.Bridge(), "type", "bridge"},
		{"address", "add", c.HostAddress() + "/24", "dev", c.Bridge()},
		{"link", "set", c.Bridge(), "up"},
	} {
		if output, err := exec.Command("ip", arguments...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %s", strings.Join(arguments, " "), strings.TrimSpace(string(output)))
		}
	}
	return nil
}
