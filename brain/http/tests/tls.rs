//! A brain behind TLS with a certificate that the system does not know: refused, unless the
//! operator names its authority.

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base_types::Chain;
use brain_api::{Brain, BrainError};
use brain_http::HttpBrain;
use support::config_for;

/// `openssl s_server`: it answers every request with a page, over real TLS.
struct TlsServer {
    process: Child,
    port: u16,
}

fn make_certificate(arguments: &[&str], constraint: &str, alternative: &str) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-addext", &format!("basicConstraints=critical,{constraint}")])
        .args(["-addext", &format!("subjectAltName={alternative}")])
        .args(arguments)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

impl TlsServer {
    fn start(dir: &Path, name: &str) -> Self {
        let path = |file: &str| dir.join(file).display().to_string();
        make_certificate(
            &["-keyout", &path("ca.key"), "-out", &path("ca.pem")],
            "CA:TRUE",
            "DNS:ca",
        );
        let (key, certificate) = (path("key.pem"), path("cert.pem"));
        let signed_by = ["-CA", &path("ca.pem"), "-CAkey", &path("ca.key")];
        let files = ["-keyout", &key, "-out", &certificate];
        let alternative = format!("DNS:{name}");
        make_certificate(&[files, signed_by].concat(), "CA:FALSE", &alternative);
        let mut process = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-key"])
            .arg(&key)
            .arg("-cert")
            .arg(&certificate)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let accept = lines.find_map(|line| Some(line.ok()?.strip_prefix("ACCEPT ")?.to_owned()));
        let port = accept.unwrap().rsplit(':').next().unwrap().parse().unwrap();
        Self { process, port }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn poll(server: &TlsServer, ca: Option<Vec<u8>>) -> BrainError {
    let mut config = config_for(&format!("https://localhost:{}", server.port));
    config.extra_ca_pem = ca;
    HttpBrain::new(config).unwrap().poll().await.unwrap_err()
}

#[tokio::test]
async fn only_a_certificate_that_the_operator_vouches_for_is_accepted() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIP only_a_certificate_that_the_operator_vouches_for_is_accepted: no openssl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = TlsServer::start(dir.path(), "localhost");
    let ca = std::fs::read(dir.path().join("ca.pem")).unwrap();

    let stranger = poll(&server, None).await;
    assert!(stranger.detail.contains("no connection"), "{}", Chain(&stranger));
    assert!(Chain(&stranger).to_string().contains("certificate"), "{}", Chain(&stranger));

    // It is a page, not a brain's answer: but it came through.
    let known = poll(&server, Some(ca.clone())).await;
    assert!(known.detail.contains("not a work item"), "{}", Chain(&known));

    let elsewhere = tempfile::tempdir().unwrap();
    let impostor = TlsServer::start(elsewhere.path(), "brain.example.com");
    let ca = std::fs::read(elsewhere.path().join("ca.pem")).unwrap();
    let misnamed = poll(&impostor, Some(ca)).await;
    assert!(misnamed.detail.contains("no connection"), "{}", Chain(&misnamed));
}
