package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// Everything of a cluster runs in a PID, a mount and a cgroup namespace of its own. When the namespace's first process dies,
// the kernel kills all others in it, containers included, and drops all mounts: whatever happens to the supervisor,
// no process and no mount is left behind. The network is the machine's, so that tests reach the pods.

// Folders in which the components keep their data: inside, each is an empty one in memory. So nothing is left of
// the data either, it is fast, and several clusters can use the same well-known paths.
var privateFolders = []string{"/run", "/var/lib", "/var/log"}

// Kernel settings of the whole machine that a kubelet changes when they differ from these. It gets to see files
// with the values that it wants, and leaves the machine as it is.
var kernelSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// firstProcess prepares the namespaces, says so on standard output, and then only takes in orphans. The supervisor
// starts it (newNamespaces), and it dies with the supervisor.
func firstProcess() error {
	if os.Getpid() != 1 {
		return errors.New("this is not for people: it changes mounts")
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	if err := prepareMounts(); err != nil {
		return err
	}
	fmt.Println("ready")
	for range children {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// The main thread keeps the main function: by its namespaces the others know those of the process.
func init() { runtime.LockOSThread() }

func prepareMounts() error {
	mount := func(source, target, kind string, flags uintptr, data string) error {
		if err := syscall.Mount(source, target, kind, flags, data); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		return nil
	}
	// Nothing mounted here is seen outside.
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	for _, folder := range privateFolders {
		if err := mount("davylamp", folder, "tmpfs", 0, "mode=0755"); err != nil {
			return err
		}
	}
	for name, value := range kernelSettings {
		file := filepath.Join("/run/sysctl", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, filepath.Join("/proc/sys", name), "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := hideCgroups(); err != nil {
		return err
	}
	// As a kubelet expects it: what it mounts for a pod reaches the pod's namespace.
	return mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

// checkFolder refuses a folder that the components could not see.
func checkFolder(folder string) error {
	real, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return err
	}
	for _, private := range privateFolders {
		if strings.HasPrefix(real+"/", private+"/") {
			return fmt.Errorf("%s is below %s, which a cluster replaces by its own: choose another folder (--dir, or DAVYLAMP_CACHE for the cache)", folder, private)
		}
	}
	return nil
}

// namespaces starts processes inside the namespaces.
type namespaces struct {
	first  *exec.Cmd
	starts chan func()
}

// newNamespaces starts the first process. One thread of this process then joins the namespaces for good, and all
// that it starts is born inside; it also lives as long as this process, which the first process's death signal needs.
func newNamespaces(stderr io.Writer) (*namespaces, error) {
	n := &namespaces{starts: make(chan func())}
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := n.enter(stderr)
		result <- err
		if err != nil {
			return
		}
		for start := range n.starts {
			start()
		}
	}()
	return n, <-result
}

func (n *namespaces) enter(stderr io.Writer) error {
	n.first = exec.Command(ownProgram(), "namespace")
	n.first.Stderr = stderr
	n.first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	output, err := n.first.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.first.Start(); err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	if line, _ := bufio.NewReader(output).ReadString('\n'); line != "ready\n" {
		return errors.New("the namespaces' first process failed")
	}
	// A thread that shares its root and working folder with others can't change its mounts.
	if err := syscall.Unshare(syscall.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// The mounts last: the files of the others are found in the /proc of the machine.
	for _, kind := range []string{"pid", "cgroup", "mnt"} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", n.first.Process.Pid, kind))
		if err != nil {
			return err
		}
		_, _, number := syscall.RawSyscall(setns, file.Fd(), 0, 0)
		file.Close()
		if number != 0 {
			return fmt.Errorf("setns %s: %w", kind, number)
		}
	}
	return nil
}

// The number of a system call that the standard library has no name for.
var setns = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]

// start starts a command inside. When the supervisor dies so does the first process, and with it all others.
func (n *namespaces) start(command *exec.Cmd) error {
	result := make(chan error)
	n.starts <- func() { result <- command.Start() }
	return <-result
}

// root is the path at which a process outside sees the files inside.
func (n *namespaces) root() string {
	return fmt.Sprintf("/proc/%d/root", n.first.Process.Pid)
}

// pause is what a pod's pause container runs: it holds the pod's network namespace until it is told to end.
func pause() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
	os.Exit(0)
}
