// A Kubernetes cluster for tests, on a machine that has no container engine: a real control plane, one real node
// whose pods have addresses that the machine reaches, a Gateway API data plane (Traefik) and Prometheus.
//
// `up` starts a supervisor (supervisor.go), which starts everything else inside namespaces of its own (namespace.go),
// so that nothing can outlive it; `down` ends the supervisor and removes what is left outside of them (sweep.go).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const usage = `A Kubernetes cluster for tests, without a container engine. Linux, as root.

  cluster up [--foreground]      start it, and return when it is ready
                                 --foreground: run until standard input closes or a signal comes, then take it down
  cluster down                   take it down, also after a crash; logs stay in DIR/logs
  cluster status                 what runs
  cluster stop COMPONENT         end a component (SIGTERM, after three seconds SIGKILL)
  cluster start COMPONENT        start it again: same address, same data; returns when it is ready
  cluster pause COMPONENT        let it hang (SIGSTOP)
  cluster resume COMPONENT       let it go on
  cluster load-image NAME FILE   make an image of one static program (started as /app), for imagePullPolicy Never
  cluster build                  only build and fetch what a cluster needs
  cluster help                   print this

Components: etcd, containerd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, traefik, prometheus.
Each command takes --dir DIR, the folder of the cluster; by default .cluster at the root of the checkout. Several
clusters, each with a folder of its own, run side by side. DIR/cluster.json tells programs where everything is.
`

func main() {
	// In a pod's pause container.
	if len(os.Args) == 2 && os.Args[1] == "pause" {
		pause()
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// ownProgram is this program's file.
func ownProgram() string {
	path, err := os.Executable()
	if err != nil {
		panic(err) // only without /proc
	}
	return path
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	command := arguments[0]
	flags := flag.NewFlagSet("cluster "+command, flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	dir := flags.String("dir", filepath.Join(os.Getenv("DAVYLAMP_CLUSTER_SOURCE"), "..", "..", ".cluster"), "")
	foreground := false
	if command == "up" {
		flags.BoolVar(&foreground, "foreground", false, "")
	}
	_ = flags.Parse(arguments[1:])
	absolute, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	operands := map[string][]string{
		"up": {}, "down": {}, "status": {}, "build": {}, "help": {}, "supervise": {}, "namespace": {},
		"stop": {"COMPONENT"}, "start": {"COMPONENT"}, "pause": {"COMPONENT"}, "resume": {"COMPONENT"},
		"load-image": {"NAME", "FILE"},
	}
	names, known := operands[command]
	if !known {
		return fmt.Errorf("unknown command %q; `cluster help` lists them", command)
	}
	if flags.NArg() != len(names) {
		return fmt.Errorf("usage: cluster %s [--dir DIR] %s", command, strings.Join(names, " "))
	}
	if os.Getuid() != 0 && command != "help" {
		return errors.New("a cluster needs root, for containers, namespaces and a network bridge: run it with sudo")
	}
	switch command {
	case "up":
		return up(absolute, foreground)
	case "down":
		return down(absolute)
	case "status", "stop", "start", "pause", "resume":
		return ask(absolute, command, flags.Arg(0))
	case "load-image":
		return loadImage(absolute, flags.Arg(0), flags.Arg(1))
	case "build":
		_, err := prepareTools()
		return err
	case "supervise":
		return supervise(absolute)
	case "namespace":
		return firstProcess()
	default:
		fmt.Print(usage)
		return nil
	}
}
