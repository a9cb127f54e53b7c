//! A brain made of scripted answers, byte for byte, over real sockets.

#![allow(dead_code)] // each test binary uses its part

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base_types::{EnvironmentId, Secret};
use brain_api::ItemToken;
use brain_http::{HttpBrain, HttpBrainConfig, Timeouts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const KEY: &str = "sk-ant-oat01-KEY-VALUE";
pub const TOKEN: &str = "sk-ant-sesstok-TOKEN-VALUE";

/// What the brain does with one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A whole answer with its length.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, and then nothing for as long as the client stays.
    Hold(Vec<u8>),
}

pub fn answer(status: u16, body: &str) -> Reply {
    Reply::Answer { status, headers: vec![], body: body.as_bytes().to_vec() }
}

impl Reply {
    pub fn header(mut self, name: &'static str, value: &str) -> Reply {
        let Reply::Answer { headers, .. } = &mut self else { panic!("only answers have headers") };
        headers.push((name, value.to_owned()));
        self
    }

    pub fn hang() -> Reply {
        Reply::Hold(vec![])
    }
}

/// An event stream with this body; `end` closes it.
pub fn event_stream(body: &[u8], end: bool) -> Reply {
    let mut bytes =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_vec();
    bytes.extend_from_slice(body);
    if end { Reply::Raw(bytes) } else { Reply::Hold(bytes) }
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Which credential came, by name.
    pub fn credential(&self) -> &'static str {
        match self.header("authorization") {
            Some(v) if v == format!("Bearer {KEY}") => "key",
            Some(v) if v == format!("Bearer {TOKEN}") => "token",
            Some(_) => "other",
            None => "none",
        }
    }
}

pub struct ScriptedBrain {
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    replies: VecDeque<Reply>,
    seen: Vec<Seen>,
}

impl ScriptedBrain {
    /// Answers requests with `replies` in their order, and any further one with 599.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = State { replies: replies.into_iter().collect(), seen: vec![] };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&shared)));
            }
        });
        Self { url, state }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn client(&self) -> HttpBrain {
        client_at(&self.url)
    }
}

pub fn client_at(url: &str) -> HttpBrain {
    HttpBrain::new(config_for(url)).unwrap()
}

/// Quick repeats, and the time-outs of the product.
pub fn config_for(url: &str) -> HttpBrainConfig {
    let timeouts = Timeouts { retry_pause: Duration::from_millis(5), ..Timeouts::default() };
    HttpBrainConfig {
        base_url: url.to_owned(),
        timeouts,
        ..HttpBrainConfig::new(EnvironmentId::new("env_1"), Secret::new(KEY), "worker-1")
    }
}

pub fn token() -> ItemToken {
    ItemToken(Secret::new(TOKEN))
}

async fn serve(mut socket: TcpStream, state: Arc<Mutex<State>>) {
    let Some(seen) = read_request(&mut socket).await else { return };
    let reply = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen);
        state.replies.pop_front().unwrap_or_else(|| answer(599, "the script is over"))
    };
    match reply {
        Reply::Answer { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            if status != 204 {
                head.push_str(&format!("content-length: {}\r\n", body.len()));
            }
            head.push_str("\r\n");
            let _ = socket.write_all(&[head.as_bytes(), &body].concat()).await;
        }
        Reply::Raw(bytes) => {
            let _ = socket.write_all(&bytes).await;
        }
        Reply::Hold(bytes) => {
            let _ = socket.write_all(&bytes).await;
            let _ = socket.read(&mut [0; 1]).await;
        }
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let head_len = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_len].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap());
    while bytes.len() < head_len + length {
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Seen { method, target, headers, body: bytes[head_len..].to_vec() })
}
