//! The chart: an SVG that is readable on light and dark pages.

use std::fmt::Write as _;

use super::report::short;
use super::rows::{Better, Results, Row};

const WIDTH: f64 = 860.0;
const LABEL: f64 = 270.0;
const VALUE: f64 = 190.0;
const LINE: f64 = 26.0;
const BAR: f64 = 16.0;
const HEAD: f64 = 64.0;
const SECTION: f64 = 44.0;

/// Draws the rates relative to plain TCP, latencies and costs.
#[must_use]
pub fn svg(results: &Results, title: &str) -> String {
    let mut body = String::new();
    let y = rates(&mut body, HEAD, results);
    let y = latencies(&mut body, y, results);
    let y = costs(&mut body, y, results);
    document(&body, y + 16.0, title)
}

fn rates(body: &mut String, y: f64, results: &Results) -> f64 {
    let rows = select_rows(results, |row| {
        row.better == Better::Higher && row.ratio().is_some()
    });
    if rows.is_empty() {
        return y;
    }
    let ratios = rows.iter().filter_map(|row| row.ratio());
    let longest = ratios.fold(1.0, f64::max);
    let mut y = section(body, y, "rates, of plain TCP (longer is better)");
    for row in rows {
        let ratio = row.ratio().unwrap_or_default();
        let (mesh, plain) = (number(row.mesh_median()), number(row.plain_median()));
        let value = format!("{ratio:.2}   {mesh} of {plain} {}", row.unit);
        bar(body, y, &row.full_name(), ratio / longest, &value);
        y += LINE;
    }
    y + SECTION / 2.0
}

fn latencies(body: &mut String, y: f64, results: &Results) -> f64 {
    let rows = select_rows(results, |row| row.unit == "µs" && row.ratio().is_some());
    if rows.is_empty() {
        return y;
    }
    let mut y = section(body, y, "latency, plain and mesh (shorter is better)");
    let largest = rows
        .iter()
        .filter_map(|row| row.mesh_median())
        .fold(1.0, f64::max);
    for row in rows {
        y = pair(body, y, row, largest);
    }
    y + SECTION / 2.0
}

fn costs(body: &mut String, y: f64, results: &Results) -> f64 {
    let rows = select_rows(results, |row| {
        row.plain.is_empty() && row.better == Better::Lower
    });
    if rows.is_empty() {
        return y;
    }
    let title = "what the proxies use (CPU of both together, memory of each)";
    let mut y = section(body, y, title);
    for row in rows {
        text(body, 16.0, y + BAR - 3.0, "label", &row.full_name());
        let value = format!("{} {}", number(row.mesh_median()), row.unit);
        text(body, LABEL, y + BAR - 3.0, "value", &value);
        y += LINE - 4.0;
    }
    y
}

fn select_rows(results: &Results, wanted: impl Fn(&Row) -> bool) -> Vec<&Row> {
    results.rows().filter(|row| wanted(row)).collect()
}

fn document(body: &str, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <style>.page{{fill:#fff}}.title{{font-size:18px;font-weight:600;fill:#1a1a1a}}.head{{font-weight:600;fill:#444}}.label,.value{{fill:#333}}.plain{{fill:#b8c0cc}}.mesh{{fill:#2f6fde}}.ground{{fill:#eef1f5}}</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"16\" y=\"34\">{}</text>\n{body}</svg>\n",
        escaped(title)
    )
}

fn section(out: &mut String, y: f64, title: &str) -> f64 {
    text(out, 16.0, y + 14.0, "head", title);
    y + LINE
}

fn pair(out: &mut String, y: f64, row: &Row, largest: f64) -> f64 {
    let plain = row.plain_median().unwrap_or_default();
    let mesh = row.mesh_median().unwrap_or_default();
    let half = BAR / 2.0;
    let scale = (WIDTH - LABEL - VALUE) / largest;
    rect(out, LABEL, y, plain * scale, half, "plain");
    rect(out, LABEL, y + half, mesh * scale, half, "mesh");
    text(out, 16.0, y + BAR - 3.0, "label", &row.full_name());
    let value = format!("{} → {} {}", short(plain), short(mesh), row.unit);
    text(out, WIDTH - VALUE + 10.0, y + BAR - 3.0, "value", &value);
    y + LINE
}

fn bar(out: &mut String, y: f64, label: &str, part: f64, value: &str) {
    let full = WIDTH - LABEL - VALUE - 60.0;
    text(out, 16.0, y + BAR - 3.0, "label", label);
    rect(out, LABEL, y, full, BAR, "ground");
    rect(out, LABEL, y, full * part, BAR, "mesh");
    text(out, LABEL + full + 10.0, y + BAR - 3.0, "value", value);
}

fn rect(out: &mut String, x: f64, y: f64, width: f64, height: f64, class: &str) {
    // Writing to a String cannot fail.
    let _written = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
        width.max(0.5)
    );
}

fn text(out: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let _written = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
        escaped(content)
    );
}

fn number(value: Option<f64>) -> String {
    value.map(short).unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows::Measured;
    use crate::bench::work::Work;
    use crate::bench::{MeasuredPath, Variant};

    #[test]
    fn the_chart_contains_every_row() {
        let mut results = Results::new(|name| ["tunnel/bulk_8", "tunnel/ready_ms"].contains(&name));
        for variant in [Variant::Plain, Variant::Mesh] {
            results.keep_sample(
                variant,
                &Measured {
                    path: MeasuredPath::Tunnel,
                    work: Work::Bulk(8),
                    values: vec![4.0],
                },
            );
        }
        results.push("ready_ms", 12.0);
        let svg = svg(&results, "a < b");
        for part in ["tunnel/bulk_8", "tunnel/ready_ms", "a &lt; b", "</svg>"] {
            assert!(svg.contains(part), "{part}");
        }
    }
}
