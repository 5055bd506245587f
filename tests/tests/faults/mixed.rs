//! Everything at once, at random: long, so it is run on demand.
//!
//! ```text
//! STRANDLINE_SEED=7 STRANDLINE_SECONDS=120 cargo test -p strandline-tests --test faults -- --ignored --nocapture
//! ```

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::producer::Options;
use strandline_tests::proxy::Link;
use strandline_tests::workload::Workload;
use tokio::time::sleep;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run it with --ignored, and a seed"]
async fn everything_at_once() {
    let seed = number("STRANDLINE_SEED", 1);
    let until = Instant::now() + Duration::from_secs(number("STRANDLINE_SECONDS", 60));
    let mut rng = StdRng::seed_from_u64(seed);
    println!("seed {seed}");
    let plan = Plan::new(3)
        .proxied()
        .in_folder()
        .flag("lease-ttl-s", 2)
        .flag("snapshot-records", 30)
        .flag("job-interval-ms", 200)
        .flag("delete-delay-ms", 300)
        .flag("drain-ms", 500)
        .flag("cache-bytes", 2_000_000)
        .flag("store-request-timeout-ms", 1000)
        .flag("store-retry-budget-ms", 2500);
    let mut cluster = Cluster::start(plan).await;
    let request_timeout = Duration::from_secs(4);
    let like = Options { request_timeout, ..Options::new(0, "mixed", 4, cluster.addresses()) };
    let workload = Workload::with(&cluster, like).await;
    while Instant::now() < until {
        let i = rng.random_range(0..cluster.len());
        let moment = Duration::from_millis(rng.random_range(0..3500));
        let what = rng.random_range(0..12);
        println!("{what} to broker {} for {moment:?}", i + 1);
        match what {
            0 | 1 => {
                cluster.kill9(i);
                sleep(moment / 3).await;
                cluster.restart(i);
            }
            2 => {
                cluster.pause(i);
                sleep(moment).await;
                cluster.resume(i);
            }
            3 => {
                let status = cluster.stop(i).await;
                assert!(status.success(), "broker {} was asked to leave and ended with {status}", i + 1);
                cluster.restart(i);
            }
            4 => {
                cluster.etcd().kill9();
                sleep(moment).await;
                cluster.restart_etcd().await;
            }
            5 => {
                cluster.etcd().pause();
                sleep(moment).await;
                cluster.etcd().resume();
            }
            6 => cluster.etcd().compact(),
            7 | 8 => {
                let rate = || json!({"error_rate": 0.1, "slowdown_rate": 0.1, "lost_answer_rate": 0.1, "reset_rate": 0.1, "truncate_rate": 0.1, "flip_rate": 0.05, "latency_jitter_ms": 100});
                let plans = [rate(), json!({"hang": true}), json!({"deny": true})];
                cluster.s3().faults(plans[rng.random_range(0..plans.len())].clone()).await;
                sleep(moment).await;
                cluster.s3().heal().await;
            }
            9 => {
                cluster.s3().kill9();
                sleep(moment).await;
                cluster.restart_s3().await;
            }
            _ => {
                let links = [Link::Down, Link::Silent, Link::OneWay];
                let link = links[rng.random_range(0..links.len())];
                if what == 10 {
                    cluster.link_to_etcd(i, link);
                } else {
                    cluster.link_to_s3(i, link);
                }
                sleep(moment).await;
                cluster.link_to_etcd(i, Link::Up);
                cluster.link_to_s3(i, Link::Up);
            }
        }
        sleep(Duration::from_millis(rng.random_range(0..1500))).await;
    }
    cluster.wait_all_ready().await;
    workload.progress(300).await;
    workload.finish(&mut cluster).await;
}
