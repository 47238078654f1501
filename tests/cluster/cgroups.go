package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A cluster has a control group of its own, in each hierarchy that is mounted. All of its processes are in the group
// `components` within it, and it is the root of what they see, so that containers get their groups within it too,
// and so that a kubelet does not see the containers of other clusters.

// hierarchy is one mounted tree of control groups; with cgroup v2 there is one in all.
type hierarchy struct {
	mount       string
	kind        string // cgroup or cgroup2
	controllers string // as in /proc/self/cgroup
	own         string // folder of this process's group
}

func hierarchies() (found []hierarchy) {
	own := map[string]string{}
	text, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			own[parts[1]] = parts[2]
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		for controllers, path := range own {
			matches := fields[2] == "cgroup2" && controllers == "" ||
				fields[2] == "cgroup" && controllers != "" && strings.Contains(","+fields[3]+",", ","+controllers+",")
			if matches {
				found = append(found, hierarchy{fields[1], fields[2], controllers, filepath.Join(fields[1], path)})
			}
		}
	}
	return found
}

// cgroups are the folders for the group of the cluster in this slot. With cgroup v1 they are within the group of this
// process; with v2 at the top, because a group that has processes can't have groups with controllers.
func cgroups(slot int) (folders []string) {
	all := hierarchies()
	for _, h := range all {
		parent := h.own
		if len(all) == 1 && h.kind == "cgroup2" {
			parent = h.mount
		}
		folders = append(folders, filepath.Join(parent, fmt.Sprintf("davylamp-%d", slot)))
	}
	return folders
}

// enterCgroups makes the cluster's group and puts this process, and so what it starts, into it.
func enterCgroups(folders []string) error {
	for _, folder := range folders {
		group := filepath.Join(folder, "components")
		if err := os.MkdirAll(group, 0o755); err != nil {
			return err
		}
		// A new cpuset of v1 is empty, and an empty one takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			for _, level := range []string{folder, group} {
				if value, err := os.ReadFile(filepath.Join(filepath.Dir(level), file)); err == nil {
					_ = os.WriteFile(filepath.Join(level, file), value, 0o644)
				}
			}
		}
		if err := joinCgroup(group); err != nil {
			return err
		}
	}
	return nil
}

func joinCgroup(folder string) error {
	return os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644)
}

// hideCgroups makes the parent of this process's group the root of all that its thread, and what it starts, sees.
func hideCgroups() error {
	all := hierarchies()
	for _, h := range all {
		if err := joinCgroup(filepath.Dir(h.own)); err != nil {
			return err
		}
	}
	if err := syscall.Unshare(cloneNewCgroup); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, h := range all {
		if err := joinCgroup(h.own); err != nil {
			return err
		}
		options := h.controllers
		if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		// Else it would be the same one again, which is refused.
		if err := syscall.Unmount(h.mount, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", h.mount, err)
		}
		if err := syscall.Mount("davylamp", h.mount, h.kind, 0, options); err != nil {
			return fmt.Errorf("mount %s: %w", h.mount, err)
		}
	}
	return nil
}

// The standard library has no name for it.
const cloneNewCgroup = 0x02000000

// leaveCgroups takes this process out of the cluster's group, so that it can be removed.
func leaveCgroups(folders []string) {
	for _, folder := range folders {
		_ = joinCgroup(filepath.Dir(folder))
	}
}

// removeCgroup removes a control group and those within it; false while one has processes.
func removeCgroup(folder string) bool {
	entries, _ := os.ReadDir(folder)
	for _, entry := range entries {
		if entry.IsDir() && !removeCgroup(filepath.Join(folder, entry.Name())) {
			return false
		}
	}
	err := os.Remove(folder)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}
