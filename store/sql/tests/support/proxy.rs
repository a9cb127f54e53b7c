//! An address in front of a server, which can lead elsewhere, lose an answer, or fall silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: AtomicU16,
    /// The next commit is passed on and its answer is not.
    lose_answer: AtomicBool,
    /// What comes from a server on a connection of before is kept back, and nobody is told.
    silent: std::sync::Mutex<CancellationToken>,
}

impl Proxy {
    pub async fn to(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            target: AtomicU16::new(target),
            lose_answer: AtomicBool::new(false),
            silent: std::sync::Mutex::new(CancellationToken::new()),
        });
        let accepting = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(accepting.clone(), client));
            }
        });
        Proxy { port, shared }
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, target: u16) {
        self.shared.target.store(target, Ordering::SeqCst);
    }

    pub fn lose_the_next_answer(&self) {
        self.shared.lose_answer.store(true, Ordering::SeqCst);
    }

    pub fn has_lost_an_answer(&self) -> bool {
        !self.shared.lose_answer.load(Ordering::SeqCst)
    }

    /// The connections there are say nothing any more; new ones do.
    pub fn silence_connections(&self) {
        let mut silent = self.shared.silent.lock().expect("no panic");
        silent.cancel();
        *silent = CancellationToken::new();
    }
}

async fn carry(shared: Arc<Shared>, mut client: TcpStream) {
    let silent = shared.silent.lock().expect("no panic").clone();
    let target = shared.target.load(Ordering::SeqCst);
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            () = silent.cancelled() => return std::future::pending().await,
            read = client.read(&mut up) => match read {
                Ok(count @ 1..) => {
                    let commits = up[..count].windows(7).any(|bytes| bytes == b"COMMIT\0");
                    if server.write_all(&up[..count]).await.is_err() {
                        return;
                    }
                    if commits && shared.lose_answer.swap(false, Ordering::SeqCst) {
                        // It is committed when this answer is there; nobody learns it.
                        let _ = server.read(&mut down).await;
                        return;
                    }
                }
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(count @ 1..) => {
                    if client.write_all(&down[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
