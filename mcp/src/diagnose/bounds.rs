//! What is much, what is slow and what is long, for all rules.

/// Behind by no more than what is produced in so long is not behind: commits come every five
/// seconds, watermarks every two.
pub const NO_LAG_S: f64 = 15.0;
/// Behind by so few records is not behind either.
pub const NO_LAG_RECORDS: f64 = 10.0;
/// Produced so many times faster than before is a surge.
pub const SURGE: f64 = 2.0;
/// A consumer that reads at least this share of what it read before has not become slower.
pub const SAME_PACE: f64 = 0.7;
/// So many new generations of a group within the window are a storm.
pub const STORM: f64 = 3.0;
/// A partition with this share of a group's lag has most of it.
pub const MOST_OF_LAG: f64 = 0.6;
/// A partition that gets so many times its fair share of a topic's records is hot.
pub const HOT: f64 = 2.0;
/// A commit that came so long after a broker was lost shows that the group had recovered, in s.
pub const RECOVERED_S: f64 = 30.0;

/// A transaction whose time-out was over so long ago should have been aborted, in s.
pub const OVERDUE_S: i64 = 30;
/// A transaction that has been open for so long is worth a word, in s.
pub const LONG_OPEN_S: i64 = 300;

/// One request in a hundred that takes longer is slow, in ms.
pub const S3_P99_MS: f64 = 1_000.0;
/// Half of the requests that take longer are slow, in ms.
pub const S3_P50_MS: f64 = 400.0;
/// So many times slower than before, and at least [`S3_NOTABLE_MS`], is slow.
pub const S3_SLOWER: f64 = 5.0;
/// Less is never called slow, in ms.
pub const S3_NOTABLE_MS: f64 = 100.0;
/// This share of failed requests is worth a word.
pub const S3_ERRORS: f64 = 0.01;

/// A read of etcd that takes longer is slow, in ms.
pub const ETCD_READ_MS: f64 = 500.0;
/// One commit in a hundred that takes longer is slow, in ms.
pub const COMMIT_P99_MS: f64 = 300.0;
/// A broker that has not applied so many revisions is behind.
pub const WATCH_LAG: f64 = 1_000.0;
/// So many starts within the window are a loop.
pub const RESTARTS: f64 = 2.0;
/// A token that ends within this time is about to expire, in s.
pub const TOKEN_S: f64 = 86_400.0;
/// Being overtaken by retention within this time is worth a word, in s.
pub const OVERTAKEN_S: f64 = 86_400.0;

const _: () = assert!(SURGE > 1.0 && SAME_PACE < 1.0);
const _: () = assert!(S3_NOTABLE_MS < S3_P50_MS && S3_P50_MS < S3_P99_MS);
