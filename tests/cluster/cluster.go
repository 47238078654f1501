package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"text/template"
)

// The node's name.
const nodeName = "davylamp"

// Clusters that run at the same time differ by their slot, from which everything follows that two of them must not
// share: ports, the pods' addresses, the bridge, the cgroup.
const slots = 32

//go:embed config
var configFiles embed.FS

// cluster is one cluster's folder and addresses; it is what the templates in config/ are filled in from.
type cluster struct {
	Dir   string
	Slot  int
	Ports ports
}

type ports struct{ Gateway, Prometheus, APIServer, Etcd, EtcdPeer, Kubelet, Health int }

func newCluster(dir string, slot int) *cluster {
	// Below the range from which the kernel gives ports to clients.
	base := 18000 + 10*slot
	return &cluster{dir, slot, ports{base, base + 1, base + 2, base + 3, base + 4, base + 5, base + 6}}
}

func (p ports) all() []int {
	return []int{p.Gateway, p.Prometheus, p.APIServer, p.Etcd, p.EtcdPeer, p.Kubelet, p.Health}
}

func (c *cluster) Config() string      { return filepath.Join(c.Dir, "config") }
func (c *cluster) Logs() string        { return filepath.Join(c.Dir, "logs") }
func (c *cluster) Bridge() string      { return fmt.Sprintf("davylamp%d", c.Slot) }
func (c *cluster) PodSubnet() string   { return fmt.Sprintf("10.%d.0.0/24", 88+c.Slot) }
func (c *cluster) HostAddress() string { return fmt.Sprintf("10.%d.0.1", 88+c.Slot) }
func (c *cluster) APIServer() string   { return fmt.Sprintf("https://127.0.0.1:%d", c.Ports.APIServer) }
func (c *cluster) Gateway() string     { return fmt.Sprintf("http://127.0.0.1:%d", c.Ports.Gateway) }
func (c *cluster) Prometheus() string  { return fmt.Sprintf("http://127.0.0.1:%d", c.Ports.Prometheus) }
func (c *cluster) Etcd() string        { return fmt.Sprintf("https://127.0.0.1:%d", c.Ports.Etcd) }
func (c *cluster) Kubeconfig() string  { return filepath.Join(c.Dir, "kubeconfig") }
func (c *cluster) AuditLog() string    { return filepath.Join(c.Logs(), "audit.log") }

// lockSlot takes the slot for the life of this process, if no other cluster has it. The lock is a name among the
// abstract sockets: those belong to the network namespace, as ports and bridges do, and vanish with their process.
func lockSlot(slot int) (net.Listener, error) {
	return net.Listen("unix", fmt.Sprintf("@davylamp-cluster-%d", slot))
}

// findSlot takes the first slot that no other cluster has and whose ports and addresses nobody else uses.
func findSlot(dir string) (*cluster, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for slot := range slots {
		lock, err := lockSlot(slot)
		if err != nil {
			continue
		}
		c := newCluster(dir, slot)
		// What is left of a cluster that was killed: its slot was free, so it is nobody's.
		c.removeOutside(cgroups(slot))
		if c.addressesFree(addresses) {
			slotLock = lock
			return c, nil
		}
		lock.Close()
	}
	return nil, errors.New("no free addresses: ports from 18000 or networks from 10.88.0.0/24 are all in use; take other clusters down")
}

// Kept from the garbage collector, which would close it.
var slotLock net.Listener

func (c *cluster) addressesFree(used []net.Addr) bool {
	_, subnet, _ := net.ParseCIDR(c.PodSubnet())
	for _, address := range used {
		other, ok := address.(*net.IPNet)
		if ok && (subnet.Contains(other.IP) || other.Contains(subnet.IP)) {
			return false
		}
	}
	for _, port := range c.Ports.all() {
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return false
		}
		listener.Close()
	}
	return true
}

// writeConfig writes what the components read: certificates, tokens, kubeconfigs and the files of config/.
func (c *cluster) writeConfig() error {
	if err := os.MkdirAll(filepath.Join(c.Config(), "cni"), 0o700); err != nil {
		return err
	}
	if err := c.writeCertificates(); err != nil {
		return err
	}
	if err := c.writeUsers(); err != nil {
		return err
	}
	files, err := configFiles.ReadDir("config")
	if err != nil {
		return err
	}
	for _, file := range files {
		target := filepath.Join(c.Config(), file.Name())
		if file.Name() == "cni.conflist" {
			target = filepath.Join(c.Config(), "cni", file.Name())
		}
		text, err := c.fill(file.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(target, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// fill is one file of config/ with this cluster's values in it.
func (c *cluster) fill(name string) ([]byte, error) {
	parsed, err := template.ParseFS(configFiles, "config/"+name)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err = parsed.Execute(&text, c)
	return text.Bytes(), err
}

// writeJSON replaces a file in one step, so that a reader never sees half of it.
func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
