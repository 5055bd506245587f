//! The demo's gentle load: creates the topics `orders` and `payments`, then writes a few records
//! per second to each until it is ended. Goes on by itself when a broker goes away.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka_protocol::records::Compression;
use strandline_tests::client::{Client, ClientError};
use strandline_tests::records::batch;

const DAY_MS: &str = "86400000";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let brokers: Vec<String> = std::env::args().skip(1).collect();
    if brokers.is_empty() {
        eprintln!("usage: strandline-demo-load HOST:PORT [HOST:PORT …]");
        std::process::exit(2);
    }
    let mut number = 0_u64;
    let mut created = false;
    loop {
        for broker in &brokers {
            match run(broker, &mut number, &mut created).await {
                Ok(never) => match never {},
                Err(error) => eprintln!("{broker}: {error}; going on with the next broker"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn run(
    broker: &str,
    number: &mut u64,
    created: &mut bool,
) -> Result<std::convert::Infallible, ClientError> {
    let mut client = Client::connect(broker).await?;
    client.set_timeout(Duration::from_secs(15));
    client.create_topic("orders", 6, &[]).await?;
    client.create_topic("payments", 3, &[("retention.ms", DAY_MS)]).await?;
    if !*created {
        println!("topics are ready");
        *created = true;
    }
    loop {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        let order =
            format!(r#"{{"order":{number},"item":"item-{}","quantity":{}}}"#, *number % 17, *number % 5 + 1);
        client
            .produce("orders", (*number % 6) as i32, batch(&[order], now_ms, None, Compression::None))
            .await?;
        if number.is_multiple_of(2) {
            let payment =
                format!(r#"{{"payment":{number},"order":{number},"cents":{}}}"#, *number % 9000 + 100);
            client
                .produce("payments", (*number % 3) as i32, batch(&[payment], now_ms, None, Compression::None))
                .await?;
        }
        *number += 1;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
}
