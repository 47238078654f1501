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
	"syscall"
)

// up starts a cluster: the supervisor does, detached from the terminal, and ends it again when this process dies
// before it has let go of it. With foreground it never lets go.
func up(dir string, foreground bool) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o755); err != nil {
		return err
	}
	for _, folder := range []string{dir, os.Getenv("DAVYLAMP_CACHE")} {
		if err := checkFolder(folder); err != nil {
			return err
		}
	}
	lock, err := lockFolder(dir)
	if errors.Is(err, errLocked) {
		if d, err := readDescription(dir); err == nil && !foreground {
			fmt.Print("Already up.\n\n", d.usage())
			return nil
		}
		return fmt.Errorf("a cluster is already up, or on its way, in %s; take it down with `cluster down`, or use another --dir", dir)
	} else if err != nil {
		return err
	}
	defer lock.Close()
	// What is left of a cluster that did not end as it should, and the logs of the one before.
	if err := sweep(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "logs")); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o755); err != nil {
		return err
	}
	built := make(chan error, 1)
	go func() { _, err := prepareTools(); built <- err }()
	select {
	case err := <-built:
		if err != nil {
			return err
		}
	case signal := <-signals:
		return fmt.Errorf("%s", signal)
	}

	command, lifeline, output, err := startSupervisor(dir, lock)
	if err != nil {
		return err
	}
	// The cluster lives until this closes; the supervisor has taken everything down when it ends.
	endCluster := func() {
		lifeline.Close()
		_ = command.Wait()
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	select {
	case line := <-lines:
		if line != "ready" {
			endCluster()
			return fmt.Errorf("the cluster did not start: %s (logs: %s)", line, filepath.Join(dir, "logs"))
		}
	case signal := <-signals:
		endCluster()
		return fmt.Errorf("%s", signal)
	}
	if !foreground {
		d, err := readDescription(dir)
		if err != nil {
			return err
		}
		fmt.Print(d.usage())
		_, err = io.WriteString(lifeline, "detach\n")
		return err
	}

	fmt.Println(filepath.Join(dir, "cluster.json"))
	closed := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(closed)
	}()
	select {
	case <-closed:
		endCluster()
		return nil
	case signal := <-signals:
		endCluster()
		return fmt.Errorf("%s", signal)
	case line := <-lines:
		endCluster()
		return errors.New("the cluster ended: " + line)
	}
}

func startSupervisor(dir string, lock *os.File) (command *exec.Cmd, lifeline io.WriteCloser, output io.Reader, err error) {
	log, err := os.OpenFile(filepath.Join(dir, "logs", "supervisor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, nil, err
	}
	defer log.Close()
	command = exec.Command(ownProgram(), "supervise", "--dir", dir)
	command.ExtraFiles = []*os.File{lock}
	command.Stderr = log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	lifeline, err = command.StdinPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	output, err = command.StdoutPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	return command, lifeline, output, command.Start()
}

// usage is what a person wants to know next.
func (d description) usage() string {
	return fmt.Sprintf(`The cluster is up.

  export KUBECONFIG=%s
  %s get pods -A

  Gateway      %s   (attach HTTPRoutes to the Gateway "davylamp" in namespace "gateway")
  Prometheus   %s
  Logs         %s

Take it down:  tests/cluster/cluster down --dir %s
`, d.Kubeconfig, d.Kubectl, d.Gateway, d.Prometheus, d.Logs, d.Dir)
}
