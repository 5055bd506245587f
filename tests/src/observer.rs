//! The observer as a client of it sees it: MCP over HTTP, one call at a time.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::process::{Nest, Process, built, eventually, free_port};

/// The token that observers of tests are started with.
pub const TOKEN: &str = "local-dev-token";

/// An observer, reached over its port.
#[derive(Clone, Copy, Debug)]
pub struct Observer {
    port: u16,
}

impl Observer {
    /// The one on this port of this machine.
    pub fn on(port: u16) -> Self {
        Self { port }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it has read etcd.
    pub async fn is_ready(&self) -> bool {
        matches!(http::get(self.port, "/readyz").await, Ok((200, _)))
    }

    /// What a method of the protocol answers.
    pub async fn request(&self, method: &str, params: Value) -> io::Result<Value> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let authorization = format!("Bearer {TOKEN}");
        let headers =
            [("Authorization", authorization.as_str()), ("Accept", "application/json, text/event-stream")];
        let (status, text) = http::request_with(self.port, "POST", "/mcp", &headers, &body).await?;
        let answer: Value =
            serde_json::from_str(&text).map_err(|e| io::Error::other(format!("{e} in {status} {text}")))?;
        match answer.get("result") {
            Some(result) if status == 200 => Ok(result.clone()),
            _ => Err(io::Error::other(format!("{method}: {status} {text}"))),
        }
    }

    /// The structured answer of a tool, which may be an error of its own.
    pub async fn try_call(&self, tool: &str, arguments: Value) -> io::Result<Value> {
        let result = self.request("tools/call", json!({"name": tool, "arguments": arguments})).await?;
        Ok(result["structuredContent"].clone())
    }

    /// The structured answer of a tool, which must not be an error.
    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        let answer = self.try_call(tool, arguments).await.expect("the observer answers");
        assert!(answer.get("error").is_none(), "{tool}: {answer}");
        answer
    }
}

/// Starts an observer of a cluster whose etcd is at this URL, and waits until it has read it. It
/// looks at everything twice a second; the flags come after the harness's own.
pub async fn observe(nest: &Nest, cluster: &str, etcd: &str, flags: &[&str]) -> (Process, Observer) {
    let observer = Observer::on(free_port());
    let own = [
        ("--cluster", cluster.to_owned()),
        ("--listen", format!("127.0.0.1:{}", observer.port())),
        ("--token", TOKEN.to_owned()),
        ("--etcd-endpoints", etcd.to_owned()),
        ("--scrape-interval-ms", "500".to_owned()),
        ("--calls-per-minute", "1000000".to_owned()),
        ("--audit-log", "off".to_owned()),
    ];
    let own = own.into_iter().filter(|(name, _)| !flags.contains(name));
    let mut args: Vec<OsString> = own.flat_map(|(name, value)| [name.into(), value.into()]).collect();
    args.extend(flags.iter().map(OsString::from));
    let process = nest.start(&format!("observer-{}", observer.port()), &built("strandline-mcp"), &args);
    let process = process.expect("the observer starts");
    let ready = async || observer.is_ready().await.then_some(());
    eventually("the observer is ready", Duration::from_mins(1), ready).await;
    (process, observer)
}
