//! Servers that are recognised by their certificate, and that recognise us by ours.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, mpsc};

use davylamp_api::source::{Authority, SecretKey, Tls};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::credentials::Vault;
use super::*;

/// Who signs.
struct Authorities {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authorities {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages.push(purpose);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server with this name in its certificate, which wants one of a client of ours if `mutual`.
    fn serve(&self, name: &str, mutual: bool) -> Server {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (certificate, key) = self.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
        let config = ServerConfig::builder();
        let config = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            config.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Server::start(Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap()))
    }

    fn tls(&self) -> Tls {
        let ca = Authority { pem: Some(self.certificate.pem()), secret: None };
        Tls { ca: Some(ca), ..Tls::default() }
    }
}

/// Answers each request with an empty result; a connection for each.
struct Server {
    port: u16,
    /// The heads of requests.
    seen: mpsc::Receiver<String>,
}

impl Server {
    fn start(config: Arc<ServerConfig>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, seen) = mpsc::channel();
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let mut tcp = tcp.unwrap();
                if let Ok(head) = answer_one(&config, &mut tcp) {
                    let _ = sender.send(head);
                }
                // What was said last arrives only if nothing is left unread.
                let _ = tcp.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut tcp, &mut std::io::sink());
            }
        });
        Self { port, seen }
    }

    fn source(&self, tls: Option<Tls>) -> MetricSourceSpec {
        MetricSourceSpec { tls, ..source(format!("https://127.0.0.1:{}", self.port)) }
    }
}

fn answer_one(config: &Arc<ServerConfig>, tcp: &mut TcpStream) -> std::io::Result<String> {
    let mut connection = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut tls = rustls::Stream::new(&mut connection, tcp);
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    let head = loop {
        let count = tls.read(&mut part)?;
        request.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
        if body.len() >= length.parse().unwrap() {
            break head.to_owned();
        }
    };
    let head_of_answer =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", EMPTY.len());
    tls.write_all(head_of_answer.as_bytes())?;
    tls.write_all(EMPTY.as_bytes())?;
    connection.send_close_notify();
    connection.complete_io(tcp)?;
    Ok(head)
}

#[tokio::test]
async fn a_server_is_recognised_by_its_authority() {
    let authorities = Authorities::new("ours");
    let server = authorities.serve("127.0.0.1", false);
    let unknown =
        QueryError::Tls("its certificate is signed by an unknown authority: write that one in tls.ca");
    // The system's own authorities, if it has any, have not signed it.
    assert!(matches!(ask(&server.source(None)).await, Err(QueryError::Tls(_))));
    for name in ["theirs", "ours"] {
        let others = Authorities::new(name).tls();
        assert_eq!(ask(&server.source(Some(others))).await, Err(unknown.clone()), "{name}");
    }
    assert_eq!(ask(&server.source(Some(authorities.tls()))).await, Ok(Answer::default()));

    let vault = Vault::default();
    vault.put("authority", &[("ca.crt", &authorities.certificate.pem())]);
    let secret = SecretKey { name: "authority".to_owned(), key: "ca.crt".to_owned() };
    let ca = Authority { pem: None, secret: Some(secret) };
    let tls = Tls { ca: Some(ca), ..Tls::default() };
    let api = api_of(vault.client(), local());
    assert_eq!(api.query(&server.source(Some(tls)), "up[5m]", 0).await, Ok(Answer::default()));

    let ca = Authority { pem: Some("none".to_owned()), secret: None };
    let tls = Tls { ca: Some(ca), ..Tls::default() };
    let error = ask(&server.source(Some(tls))).await.unwrap_err();
    assert_eq!(error, QueryError::Tls("tls.ca holds no certificate that can be read"));
}

#[tokio::test]
async fn a_server_may_have_another_name_in_its_certificate() {
    let authorities = Authorities::new("ours");
    let server = authorities.serve("metrics.example", false);
    let error = ask(&server.source(Some(authorities.tls()))).await.unwrap_err();
    assert_eq!(
        error,
        QueryError::Tls("its certificate is for another name: write that one in tls.serverName")
    );
    let tls = Tls { server_name: Some("metrics.example".to_owned()), ..authorities.tls() };
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("https://{host}:{}/prometheus", server.port);
        let source = MetricSourceSpec { tls: Some(tls.clone()), ..source(url) };
        assert_eq!(ask(&source).await, Ok(Answer::default()));
        let head = server.seen.recv().unwrap();
        assert!(head.starts_with("post /prometheus/api/v1/query http/1.1"), "{head}");
        assert!(head.contains(&format!("\nhost: {host}:{}\r", server.port)), "{head}");
        assert_eq!(head.matches("\nhost: ").count(), 1, "{head}");
    }
    let tls = Tls { server_name: Some("other.example".to_owned()), ..authorities.tls() };
    assert!(matches!(ask(&server.source(Some(tls))).await, Err(QueryError::Tls(_))));
}

#[tokio::test]
async fn a_server_may_want_a_certificate() {
    let authorities = Authorities::new("ours");
    let server = authorities.serve("127.0.0.1", true);
    let error = ask(&server.source(Some(authorities.tls()))).await.unwrap_err();
    let wanted = "it breaks off: does it want a certificate, in tls.clientCertificate?";
    assert_eq!(error, QueryError::Tls(wanted));

    let vault = Vault::default();
    let api = api_of(vault.client(), local());
    let tls = Tls { client_certificate: Some("client".to_owned()), ..authorities.tls() };
    let source = server.source(Some(tls));
    let ask = || api.query(&source, "up[5m]", 0);
    let (stranger, key) = Authorities::new("theirs").sign("davylamp", ExtendedKeyUsagePurpose::ClientAuth);
    vault.put("client", &[("tls.crt", &stranger.pem()), ("tls.key", &key.serialize_pem())]);
    assert_eq!(ask().await, Err(QueryError::Tls(wanted)));

    // The secret is renewed: so is the client, a minute later.
    let (ours, key) = authorities.sign("davylamp", ExtendedKeyUsagePurpose::ClientAuth);
    vault.put("client", &[("tls.crt", ours.pem().trim_end()), ("tls.key", &key.serialize_pem())]);
    credentials::later(60).await;
    assert_eq!(ask().await, Ok(Answer::default()));

    vault.put("client", &[("tls.crt", &ours.pem()), ("tls.key", "none")]);
    credentials::later(60).await;
    let unusable = QueryError::Tls("tls.clientCertificate holds no certificate with its key");
    assert_eq!(ask().await, Err(unusable));
}
