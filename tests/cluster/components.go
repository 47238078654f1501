package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// component is one process of the cluster.
type component struct {
	name      string
	program   string
	arguments []string
	// ready says what is missing until it may be used.
	ready func() error
}

// components are all of them.
func (c *cluster) components(t *tools, client *client) []component {
	config := func(name string) string { return filepath.Join(c.Config(), name) }
	kubernetes := func(name string) string { return filepath.Join(t.Kubernetes, name) }
	return []component{
		{"etcd", kubernetes("etcd"), []string{
			"--data-dir=/var/lib/etcd",
			// Its data does not outlive it.
			"--unsafe-no-fsync",
			"--log-level=warn",
			"--listen-client-urls=" + c.Etcd(),
			"--advertise-client-urls=" + c.Etcd(),
			fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", c.Ports.EtcdPeer),
			fmt.Sprintf("--initial-advertise-peer-urls=http://127.0.0.1:%d", c.Ports.EtcdPeer),
			fmt.Sprintf("--initial-cluster=default=http://127.0.0.1:%d", c.Ports.EtcdPeer),
			"--client-cert-auth",
			"--trusted-ca-file=" + config("ca.crt"),
			"--cert-file=" + config("server.crt"),
			"--key-file=" + config("server.key"),
		}, func() error { return client.get(c.Etcd()+"/health", nil) }},

		{"containerd", "containerd", []string{"--config=" + config("containerd.toml")}, func() error {
			connection, err := net.Dial("unix", client.root+"/run/containerd/containerd.sock")
			if err == nil {
				connection.Close()
			}
			return err
		}},

		{"kube-apiserver", kubernetes("kube-apiserver"), []string{
			"--bind-address=127.0.0.1",
			fmt.Sprintf("--secure-port=%d", c.Ports.APIServer),
			// Nothing reaches it by the Service `kubernetes`.
			"--endpoint-reconciler-type=none",
			"--advertise-address=" + c.HostAddress(),
			"--service-cluster-ip-range=10.200.0.0/16",
			"--allow-privileged=true",
			"--authorization-mode=Node,RBAC",
			"--token-auth-file=" + config("tokens.csv"),
			"--tls-cert-file=" + config("server.crt"),
			"--tls-private-key-file=" + config("server.key"),
			"--etcd-servers=" + c.Etcd(),
			"--etcd-cafile=" + config("ca.crt"),
			"--etcd-certfile=" + config("server.crt"),
			"--etcd-keyfile=" + config("server.key"),
			"--kubelet-certificate-authority=" + config("ca.crt"),
			"--kubelet-client-certificate=" + config("server.crt"),
			"--kubelet-client-key=" + config("server.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + config("service-accounts.key"),
			"--service-account-signing-key-file=" + config("service-accounts.key"),
			"--audit-policy-file=" + config("audit.yaml"),
			"--audit-log-path=" + c.AuditLog(),
			"--audit-log-maxsize=100000",
		}, func() error { return client.get(c.APIServer()+"/readyz", nil) }},

		{"kube-controller-manager", kubernetes("kube-controller-manager"), []string{
			"--kubeconfig=" + config("kube-controller-manager.kubeconfig"),
			"--use-service-account-credentials",
			"--root-ca-file=" + config("ca.crt"),
			"--service-account-private-key-file=" + config("service-accounts.key"),
			"--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",
			"--leader-elect=false",
			"--secure-port=0",
			"--kube-api-qps=500",
			"--kube-api-burst=1000",
		}, func() error {
			return client.get(c.APIServer()+"/api/v1/namespaces/default/serviceaccounts/default", nil)
		}},

		{"kube-scheduler", kubernetes("kube-scheduler"), []string{
			"--kubeconfig=" + config("kube-scheduler.kubeconfig"),
			"--leader-elect=false",
			"--secure-port=0",
			"--kube-api-qps=500",
			"--kube-api-burst=1000",
		}, func() error { return nil }},

		{"kubelet", kubernetes("kubelet"), []string{
			"--config=" + config("kubelet.yaml"),
			"--kubeconfig=" + config("kubelet.kubeconfig"),
			"--hostname-override=" + nodeName,
			"--node-ip=" + c.HostAddress(),
		}, func() error { return client.condition(c.APIServer()+"/api/v1/nodes/"+nodeName, "Ready") }},

		{"traefik", t.Traefik, []string{"--configFile=" + config("traefik.yaml")}, func() error {
			if err := client.get(fmt.Sprintf("http://127.0.0.1:%d/ping", c.Ports.Health), nil); err != nil {
				return err
			}
			return client.condition(c.APIServer()+gatewayPath+"/davylamp", "Programmed")
		}},

		{"prometheus", t.Prometheus, []string{
			"--config.file=" + config("prometheus.yaml"),
			"--storage.tsdb.path=/var/lib/prometheus",
			fmt.Sprintf("--web.listen-address=127.0.0.1:%d", c.Ports.Prometheus),
			// From a new pod to its first sample: seconds.
			"--scrape.discovery-reload-interval=1s",
		}, func() error { return client.get(c.Prometheus()+"/-/ready", nil) }},
	}
}

const gatewayPath = "/apis/gateway.networking.k8s.io/v1/namespaces/gateway/gateways"

// createGateway gives the API server the Gateway API's types, and the one Gateway that routes attach to.
func (c *cluster) createGateway(t *tools, client *client) error {
	files, err := filepath.Glob(filepath.Join(t.GatewayAPI, "*.yaml"))
	if err != nil {
		return err
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := client.create(c.APIServer()+"/apis/apiextensions.k8s.io/v1/customresourcedefinitions", text); err != nil {
			return err
		}
	}
	for _, object := range [][2]string{
		{"/api/v1/namespaces", `{"metadata": {"name": "gateway"}}`},
		{"/apis/gateway.networking.k8s.io/v1/gatewayclasses", `{
			"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "traefik"},
			"spec": {"controllerName": "traefik.io/gateway-controller"}}`},
		{gatewayPath, fmt.Sprintf(`{
			"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "davylamp"},
			"spec": {"gatewayClassName": "traefik", "listeners": [{
				"name": "http", "protocol": "HTTP", "port": %d, "allowedRoutes": {"namespaces": {"from": "All"}}}]}}`,
			c.Ports.Gateway)},
	} {
		// A new type is served a moment after it is created.
		create := func() error { return client.create(c.APIServer()+object[0], []byte(object[1])) }
		if err := eventually(create); err != nil {
			return err
		}
	}
	return nil
}

// client talks to the components as the cluster's administrator.
type client struct {
	http  http.Client
	token string
	// root is where the files inside of the namespaces are seen.
	root string
}

func (c *cluster) newClient(root string) (*client, error) {
	authority, err := os.ReadFile(filepath.Join(c.Config(), "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	own, err := tls.LoadX509KeyPair(filepath.Join(c.Config(), "server.crt"), filepath.Join(c.Config(), "server.key"))
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(c.Config(), "admin.token"))
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}}
	return &client{http.Client{Transport: transport, Timeout: 5 * time.Second}, string(token), root}, nil
}

func (client *client) do(method, url string, body []byte) ([]byte, error) {
	request, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(url, "https:") {
		request.Header.Set("Authorization", "Bearer "+client.token)
	}
	request.Header.Set("Content-Type", "application/yaml")
	request.Header.Set("Accept", "application/json")
	response, err := client.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= 300 && response.StatusCode != http.StatusConflict {
		err = fmt.Errorf("%s %s: %s: %.300s", method, url, response.Status, text)
	}
	return text, err
}

func (client *client) create(url string, object []byte) error {
	_, err := client.do("POST", url, object)
	return err
}

func (client *client) get(url string, into any) error {
	text, err := client.do("GET", url, nil)
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// condition is nil when an object's condition is true.
func (client *client) condition(url, name string) error {
	var object struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := client.get(url, &object); err != nil {
		return err
	}
	for _, condition := range object.Status.Conditions {
		if condition.Type == name && condition.Status == "True" {
			return nil
		} else if condition.Type == name {
			return fmt.Errorf("not %s: %s", name, condition.Message)
		}
	}
	return fmt.Errorf("not %s yet", name)
}

// eventually tries until it works; slow machines and busy ones get there too.
func eventually(try func() error) (err error) {
	waitUntil(2*time.Minute, func() bool {
		err = try()
		return err == nil
	})
	return err
}
