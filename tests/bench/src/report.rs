//! Results: a table for people, JSON for programs.

use serde_json::json;

/// One measurement and what it should be.
#[derive(Debug)]
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    target: Option<(Bound, f64)>,
}

/// Which side of the target is good.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At most.
    AtMost,
    /// At least.
    AtLeast,
}

/// All measurements of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Notes a figure.
    pub fn figure(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.push(what.into(), value, unit, None);
    }

    /// Notes a figure with its target.
    pub fn target(
        &mut self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        bound: Bound,
        target: f64,
    ) {
        self.push(what.into(), value, unit, Some((bound, target)));
    }

    fn push(&mut self, what: String, value: f64, unit: &'static str, target: Option<(Bound, f64)>) {
        let row = Row { what, value, unit, target };
        println!("{}", line(&row));
        self.rows.push(row);
    }

    /// The table, and where the JSON was written.
    pub fn finish(self) {
        println!("\n{:<68} {:>12}  {:<12} target", "what", "measured", "unit");
        for row in &self.rows {
            println!("{}", line(row));
        }
        let rows: Vec<serde_json::Value> = self
            .rows
            .iter()
            .map(|row| {
                let target =
                    row.target.map(|(bound, value)| json!({"bound": format!("{bound:?}"), "value": value}));
                json!({"what": row.what, "value": row.value, "unit": row.unit, "target": target})
            })
            .collect();
        let folder =
            std::env::current_exe().expect("this program").parent().expect("its folder").join("bench");
        std::fs::create_dir_all(&folder).expect("a folder for the results");
        let path = folder.join("results.json");
        let text = serde_json::to_string_pretty(&rows).expect("plain values serialise");
        std::fs::write(&path, text).expect("the results can be written");
        println!("\nJSON: {}", path.display());
    }
}

fn line(row: &Row) -> String {
    let target = row.target.map_or_else(String::new, |(bound, target)| {
        let (sign, met) = match bound {
            Bound::AtMost => ("≤", row.value <= target),
            Bound::AtLeast => ("≥", row.value >= target),
        };
        format!("{sign} {target} {}", if met { "met" } else { "MISSED" })
    });
    format!("{:<68} {:>12.3}  {:<12} {target}", row.what, row.value, row.unit)
}

/// The value below which `share` of the samples lie.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = ((samples.len() as f64 - 1.0) * share).round() as usize;
    samples.get(at).copied().unwrap_or(f64::NAN)
}
