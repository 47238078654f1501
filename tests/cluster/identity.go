package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Who talks to the API server: the file's name, the user and the groups. The audit log tells them apart.
var users = []struct{ file, name, group string }{
	{"admin", "admin", "system:masters"},
	{"kube-controller-manager", "system:kube-controller-manager", ""},
	{"kube-scheduler", "system:kube-scheduler", ""},
	{"kubelet", "system:node:" + nodeName, "system:nodes"},
	{"traefik", "traefik", "system:masters"},
	{"prometheus", "prometheus", "system:masters"},
}

// writeUsers writes the API server's token file, and for each user a token and a kubeconfig.
func (c *cluster) writeUsers() error {
	var table strings.Builder
	for _, user := range users {
		secret := make([]byte, 16)
		_, _ = rand.Read(secret)
		token := hex.EncodeToString(secret)
		fmt.Fprintf(&table, "%s,%s,%s,%q\n", token, user.name, user.name, user.group)
		if err := os.WriteFile(filepath.Join(c.Config(), user.file+".token"), []byte(token), 0o600); err != nil {
			return err
		}
		path := filepath.Join(c.Config(), user.file+".kubeconfig")
		if user.file == "admin" {
			path = c.Kubeconfig()
		}
		if err := c.writeKubeconfig(path, token); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(c.Config(), "tokens.csv"), []byte(table.String()), 0o600)
}

func (c *cluster) writeKubeconfig(path, token string) error {
	authority, err := os.ReadFile(filepath.Join(c.Config(), "ca.crt"))
	if err != nil {
		return err
	}
	type object = map[string]any
	return writeJSON(path, object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": "davylamp",
		"clusters":        []object{{"name": "davylamp", "cluster": object{"server": c.APIServer(), "certificate-authority-data": authority}}},
		"users":           []object{{"name": "davylamp", "user": object{"token": token}}},
		"contexts":        []object{{"name": "davylamp", "context": object{"cluster": "davylamp", "user": "davylamp"}}},
	})
}

// writeCertificates makes an authority and one certificate, with which the control plane's servers and clients know
// each other, and the key that signs the tokens of service accounts.
func (c *cluster) writeCertificates() error {
	authorityKey, err := c.writeKey("ca.key")
	if err != nil {
		return err
	}
	serverKey, err := c.writeKey("server.key")
	if err != nil {
		return err
	}
	if _, err := c.writeKey("service-accounts.key"); err != nil {
		return err
	}
	authority := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "davylamp test cluster"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		// As the kubelet's client the API server needs a group that may do everything.
		Subject:     pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}},
		NotBefore:   authority.NotBefore,
		NotAfter:    authority.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(c.HostAddress())},
	}
	if err := c.writeCertificate("ca.crt", authority, authority, authorityKey, authorityKey); err != nil {
		return err
	}
	return c.writeCertificate("server.crt", server, authority, serverKey, authorityKey)
}

func (c *cluster) writeKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	encoded, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, c.writePEM(name, "EC PRIVATE KEY", encoded)
}

func (c *cluster) writeCertificate(name string, certificate, issuer *x509.Certificate, key, issuerKey *ecdsa.PrivateKey) error {
	encoded, err := x509.CreateCertificate(rand.Reader, certificate, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return err
	}
	return c.writePEM(name, "CERTIFICATE", encoded)
}

func (c *cluster) writePEM(name, kind string, encoded []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: encoded})
	return os.WriteFile(filepath.Join(c.Config(), name), text, 0o600)
}
