//! Figures from the history of metrics: rates, percentiles and levels over a window, over one
//! broker or all of them.
//!
//! A broker that has not been read lately says nothing about now: it is left out, the answer is
//! partial and says so.

use serde_json::{Value, json};

use super::Call;
use super::answer::{Code, Covered, SourceStatus, ToolError};
use crate::source::exposition;
use crate::source::history::{
    COARSE_SPAN_MS, COARSE_STEP_MS, FINE_SPAN_MS, Track, Window, add_buckets, precise, quantile,
};

/// A number of seconds that is not absurd.
#[expect(clippy::cast_possible_truncation, reason = "it is checked to be small")]
pub(crate) fn whole(seconds: f64) -> Option<i64> {
    (seconds.is_finite() && seconds.abs() < 1e12).then(|| seconds.ceil() as i64)
}

/// Two digits behind the point are as many as a rate has.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// A source of metrics as a call sees it.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Its name, `metrics:broker-1`.
    pub(crate) name: String,
    /// How it is.
    pub(crate) status: SourceStatus,
    /// How old what is known of it is, in ms.
    pub(crate) age_ms: Option<i64>,
}

/// The figures of one call, over one window.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// The sources that count.
    sources: Vec<(String, Track)>,
    window: Window,
    stale_ms: i64,
    now_ms: i64,
}

/// The names of all sources of metrics and how they are; sources that may not be read are absent.
pub(crate) fn sources(call: &Call<'_>) -> Vec<Source> {
    let stale_ms = call.observer.samples.stale_ms();
    let history = call.observer.samples.history();
    let mut sources: Vec<Source> = history
        .tracks()
        .iter()
        .filter(|(name, track)| {
            name.starts_with("metrics:")
                && track.tried_at_ms.is_some_and(|t| call.now_ms - t <= stale_ms.max(60_000))
        })
        .map(|(name, track)| {
            let age_ms = track.last_ok_ms.map(|t| (call.now_ms - t).max(0));
            let status = match age_ms {
                Some(age) if age <= stale_ms => SourceStatus::Ok,
                Some(_) => SourceStatus::Stale,
                None => SourceStatus::Failed,
            };
            Source { name: name.clone(), status, age_ms }
        })
        .collect();
    drop(history);
    let refused = call.observer.samples.refused().into_keys();
    sources.extend(refused.map(|name| Source { name, status: SourceStatus::Absent, age_ms: None }));
    sources
}

/// The window that a caller asks for.
pub(crate) fn window(call: &Call<'_>, default: &str) -> Result<Window, ToolError> {
    let now = call.now_ms;
    let (start, end) = (call.args.time("start"), call.args.time("end"));
    if call.args.text("window").is_some() && start.is_some() {
        return Err(ToolError::new(Code::InvalidArgument, "window and start cannot be given together"));
    }
    let length_ms = match call.args.text("window").unwrap_or(default) {
        "15m" => 900_000,
        "1h" => 3_600_000,
        "6h" => 21_600_000,
        "24h" => 86_400_000,
        _ => 300_000,
    };
    let end_ms = end.unwrap_or(now).min(now);
    let start_ms = start.unwrap_or(end_ms - length_ms);
    if start_ms >= end_ms {
        return Err(ToolError::new(Code::InvalidArgument, "start: it must be before end, and before now"));
    }
    if end_ms < now - COARSE_SPAN_MS {
        return Err(ToolError::new(Code::WindowOutOfRange, "nothing is kept for longer than seven days"));
    }
    Ok(Window { start_ms, end_ms })
}

impl Figures {
    /// Over a window, of one broker or all.
    pub(crate) fn new(call: &mut Call<'_>, window: Window, broker: Option<i64>) -> Result<Self, ToolError> {
        let known = sources(call);
        let wanted = broker.map(|id| format!("metrics:broker-{id}"));
        if let Some(wanted) = &wanted
            && !known.iter().any(|s| s.name == *wanted)
        {
            let message = format!("there are no metrics of {}", wanted.trim_start_matches("metrics:"));
            return Err(ToolError::new(Code::NotFound, message)
                .suggest("describe_brokers has the brokers and their last scrape"));
        }
        let stale_ms = call.observer.samples.stale_ms();
        let is_now = call.now_ms - window.end_ms <= stale_ms;
        let mut counted = Vec::new();
        for source in known.into_iter().filter(|s| wanted.as_ref().is_none_or(|w| s.name == *w)) {
            call.meta.source(source.name.clone(), source.status, source.age_ms);
            if source.status != SourceStatus::Ok && is_now {
                let word = if source.status == SourceStatus::Stale { "stale" } else { "unavailable" };
                call.meta.missing(
                    "metrics_missing",
                    format!("metrics of {} are {word}; totals are without it", source.name),
                );
                continue;
            }
            if let Some(age) = source.age_ms.filter(|_| is_now) {
                call.meta.read_at(call.now_ms - age);
            }
            let track = call.observer.samples.history().track(&source.name).cloned();
            counted.extend(track.map(|track| (source.name, track)));
        }
        if counted.is_empty() {
            call.meta
                .missing("no_metrics", "no metrics of any broker are known: rates and latencies are null");
        }
        let figures = Self { sources: counted, window, stale_ms, now_ms: call.now_ms };
        call.meta.window = figures.covered(call.observer.samples.interval_ms());
        if let Some(covered) = call.meta.window
            && covered.start_ms - window.start_ms > 2 * covered.step_ms
        {
            call.meta.warn(
                "window_shortened",
                "the window reaches further back than what is known; see meta.window",
            );
        }
        Ok(figures)
    }

    fn covered(&self, interval_ms: i64) -> Option<Covered> {
        let column = exposition::scalar("requests")?.0;
        let gauge = exposition::scalar("registered")?.0;
        let spans = self.sources.iter().filter_map(|(_, track)| {
            let samples =
                [column, gauge].map(|c| track.between(c, self.window)).into_iter().max_by_key(Vec::len)?;
            Some((samples.first()?.0, samples.last()?.0, samples.len()))
        });
        let (start_ms, end_ms, samples) = spans.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1), a.2.max(b.2)))?;
        let is_fine = self.window.start_ms >= self.now_ms - FINE_SPAN_MS;
        Some(Covered {
            start_ms,
            end_ms,
            step_ms: if is_fine { interval_ms } else { COARSE_STEP_MS },
            samples,
        })
    }

    /// The sources that count, each with figures of its own.
    pub(crate) fn each(&self) -> Vec<(String, Self)> {
        let one = |(name, track): &(String, Track)| {
            (name.clone(), Self { sources: vec![(name.clone(), track.clone())], ..self.clone() })
        };
        self.sources.iter().map(one).collect()
    }

    /// How much a counter grew per second; `None` if no source says.
    pub(crate) fn rate(&self, name: &str) -> Option<f64> {
        let (column, _) = exposition::scalar(name)?;
        let rates = self.sources.iter().filter_map(|(_, t)| Some(t.growth(column, self.window)?.per_s()));
        rates.reduce(|a, b| a + b).map(rounded)
    }

    /// By how much a counter grew.
    pub(crate) fn growth(&self, name: &str) -> Option<f64> {
        let (column, _) = exposition::scalar(name)?;
        self.sources
            .iter()
            .filter_map(|(_, t)| Some(t.growth(column, self.window)?.amount))
            .reduce(|a, b| a + b)
    }

    /// By how much a counter grew that a broker says nothing of until it is above zero: where the
    /// broker was read and does not say it, it is zero.
    pub(crate) fn appeared(&self, name: &str) -> Option<f64> {
        let (column, _) = exposition::scalar(name)?;
        let (always, _) = exposition::scalar("registered")?;
        let grown = self.sources.iter().filter_map(|(_, track)| {
            let (first_read, _) = *track.between(always, self.window).first()?;
            let samples = track.between(column, self.window);
            let (Some((first_at, first)), Some((_, last))) = (samples.first(), samples.last()) else {
                return Some(0.0);
            };
            Some(if *first_at > first_read { *last } else { last - first })
        });
        grown.reduce(|a, b| a + b)
    }

    /// The same sources over another window.
    pub(crate) fn over(&self, window: Window) -> Self {
        Self { window, ..self.clone() }
    }

    /// What of one counter's growth is the other's; `None` if there was none, or nothing is known.
    pub(crate) fn ratio(&self, part: &str, whole: &[&str]) -> Option<f64> {
        let whole =
            whole.iter().filter_map(|name| self.growth(name)).reduce(|a, b| a + b).filter(|w| *w > 0.0)?;
        // A counter that has never been above zero is not said by the broker.
        Some((self.growth(part).unwrap_or_default() / whole * 10_000.0).round() / 10_000.0)
    }

    /// The newest values of a gauge, one per source that is fresh.
    pub(crate) fn levels(&self, name: &str) -> Vec<f64> {
        let Some((column, _)) = exposition::scalar(name) else { return Vec::new() };
        let since = self.window.end_ms - self.stale_ms;
        self.sources.iter().filter_map(|(_, t)| t.newest(column, since)).collect()
    }

    /// For how long a gauge has been above zero at some source, as far as is known, in s; `None` if
    /// no source says.
    pub(crate) fn above_zero_s(&self, name: &str) -> Option<f64> {
        let (column, _) = exposition::scalar(name)?;
        let ages = self.sources.iter().filter_map(|(_, track)| {
            let samples = track.between(column, self.window);
            samples.last()?;
            let above = samples.iter().rev().take_while(|(_, value)| *value > 0.0);
            // Seen once is for a moment at least.
            let since = above.last().map(|(at_ms, _)| (self.window.end_ms - at_ms).max(1));
            Some(precise(since.unwrap_or(0)) / 1000.0)
        });
        ages.reduce(f64::max)
    }

    /// The sum of a gauge over all sources.
    pub(crate) fn level(&self, name: &str) -> Option<f64> {
        self.levels(name).into_iter().reduce(|a, b| a + b)
    }

    /// A percentile in ms; `None` if nothing happened or nothing is known.
    pub(crate) fn percentile_ms(&self, name: &str, part: f64) -> Option<f64> {
        let histogram = exposition::histogram(name)?;
        let mut sum = Vec::new();
        for (_, track) in &self.sources {
            if let Some(buckets) = track.buckets(histogram, self.window) {
                add_buckets(&mut sum, &buckets);
            }
        }
        quantile(&sum, part).map(|s| rounded(s * 1000.0))
    }

    /// The usual percentiles, in ms.
    pub(crate) fn percentiles(&self, name: &str) -> Value {
        json!({
            "p50": self.percentile_ms(name, 0.5),
            "p95": self.percentile_ms(name, 0.95),
            "p99": self.percentile_ms(name, 0.99),
        })
    }

    /// How the object store is, as the brokers see it.
    pub(crate) fn s3_state(&self) -> &'static str {
        let levels = self.levels("s3_healthy");
        match (levels.is_empty(), levels.iter().all(|l| *l > 0.5)) {
            (true, _) => "unknown",
            (false, true) => "ok",
            (false, false) => "failing",
        }
    }
}
