package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// loadImage makes an image of one static program and gives it to the cluster's container runtime.
func loadImage(dir, name, program string) error {
	first := readState(dir).First
	if !first.alive() {
		return fmt.Errorf("no cluster is up in %s; start one with `cluster up`", dir)
	}
	if !strings.Contains(name, ":") {
		return fmt.Errorf("image name %q has no tag: write %s:1", name, name)
	}
	archive, err := imageArchive(name, program)
	if err != nil {
		return err
	}
	return importImage(archive, fmt.Sprintf("/proc/%d/root", first.PID), (*exec.Cmd).Start)
}

// importImage gives an archive to the containerd whose files are seen at root.
func importImage(archive []byte, root string, start func(*exec.Cmd) error) error {
	socket := filepath.Join(root, "run/containerd/containerd.sock")
	command := exec.Command("ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "-")
	command.Stdin = bytes.NewReader(archive)
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	err := start(command)
	if err == nil {
		err = command.Wait()
	}
	if err != nil {
		return fmt.Errorf("ctr images import: %w: %s", err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// imageArchive is the image as `docker save` would write it: one layer with the program as /app, its configuration
// and a list of the two.
func imageArchive(name, program string, arguments ...string) ([]byte, error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(text, []byte("\x7fELF")) {
		return nil, errors.New(program + " is not a Linux program")
	}
	layer, err := tarball(file{"app", text, 0o755})
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	config, err := json.Marshal(object{
		"os":           "linux",
		"architecture": runtime.GOARCH,
		"config":       object{"Entrypoint": append([]string{"/app"}, arguments...)},
		"rootfs":       object{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return nil, err
	}
	configName := digest(config) + ".json"
	list, err := json.Marshal([]object{{"Config": configName, "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	return tarball(file{"layer.tar", layer, 0o644}, file{configName, config, 0o644}, file{"manifest.json", list, 0o644})
}

type file struct {
	name string
	text []byte
	mode int64
}

func tarball(files ...file) ([]byte, error) {
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	for _, f := range files {
		if err := writer.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text))}); err != nil {
			return nil, err
		}
		if _, err := writer.Write(f.text); err != nil {
			return nil, err
		}
	}
	err := writer.Close()
	return archive.Bytes(), err
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
