//! Charts of figures: `avidfs-plot FOLDER` reads lines of tab-separated `CHART SERIES X Y` and writes `FOLDER/CHART.svg`
//! for each chart, with one line for each series. X is text, in the order in which it first comes; Y is a number.
//! A line `CHART title TEXT` or `CHART unit TEXT` names the chart, or what Y is.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, BufRead};
use std::path::Path;
use std::process::ExitCode;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Left, top, right, bottom.
const MARGINS: (f64, f64, f64, f64) = (70.0, 44.0, 150.0, 44.0);
/// Of Okabe and Ito, told apart by colour-blind people as well.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

#[derive(Default)]
struct Chart {
    title: String,
    unit: String,
    places: Vec<String>,
    series: Vec<(String, Vec<(usize, f64)>)>,
}

impl Chart {
    fn add(&mut self, series: &str, x: &str, y: f64) {
        let place = self.places.iter().position(|place| place == x).unwrap_or_else(|| {
            self.places.push(x.to_owned());
            self.places.len() - 1
        });
        match self.series.iter_mut().find(|(name, _)| name == series) {
            Some((_, points)) => points.push((place, y)),
            None => self.series.push((series.to_owned(), vec![(place, y)])),
        }
    }

    fn svg(&self) -> String {
        let (left, top, right, bottom) = MARGINS;
        let (width, height) = (WIDTH - left - right, HEIGHT - top - bottom);
        let most = self.series.iter().flat_map(|(_, points)| points).map(|(_, y)| *y).fold(0.0, f64::max);
        let end = round_up(most);
        let x = |place: usize| left + width * (place as f64 + 0.5) / self.places.len().max(1) as f64;
        let y = |value: f64| top + height * (1.0 - value / end);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut text = |at: (f64, f64), anchor: &str, size: u32, text: &str| {
            let (x, y) = at;
            let text = escaped(text);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>"
            );
        };
        text((left, 20.0), "start", 14, &self.title);
        text((left, 36.0), "start", 11, &self.unit);
        for step in 0..=4 {
            let value = end * f64::from(step) / 4.0;
            text((left - 6.0, y(value) + 4.0), "end", 11, &number(value));
        }
        for (place, name) in self.places.iter().enumerate() {
            text((x(place), HEIGHT - bottom + 18.0), "middle", 11, name);
        }
        for (i, (name, _)) in self.series.iter().enumerate() {
            text((WIDTH - right + 30.0, top + 18.0 * i as f64 + 10.0), "start", 12, name);
        }
        for step in 0..=4 {
            let at = y(end * f64::from(step) / 4.0);
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>",
                left + width
            );
        }
        for (i, (_, points)) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let line: Vec<String> =
                points.iter().map(|(place, value)| format!("{:.1},{:.1}", x(*place), y(*value))).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" ")
            );
            for (place, value) in points {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                    x(*place),
                    y(*value)
                );
            }
            let at = top + 18.0 * i as f64 + 6.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                WIDTH - right + 8.0,
                WIDTH - right + 26.0
            );
        }
        svg + "</svg>\n"
    }
}

/// 1, 2, 4, 5 or 8 times a power of ten: quarters of it are short numbers.
fn round_up(most: f64) -> f64 {
    let power = 10f64.powf(most.max(1e-9).log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|end| *end >= most)
        .unwrap_or(most)
}

fn number(value: f64) -> String {
    if value >= 10.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn read(lines: impl Iterator<Item = io::Result<String>>) -> io::Result<BTreeMap<String, Chart>> {
    let mut charts: BTreeMap<String, Chart> = BTreeMap::new();
    for line in lines {
        let line = line?;
        let fields: Vec<&str> = line.split('\t').collect();
        match fields.as_slice() {
            [chart, "title", text] => {
                charts.entry((*chart).to_owned()).or_default().title = (*text).to_owned()
            }
            [chart, "unit", text] => charts.entry((*chart).to_owned()).or_default().unit = (*text).to_owned(),
            [chart, series, x, y] if y.parse::<f64>().is_ok_and(f64::is_finite) => {
                charts.entry((*chart).to_owned()).or_default().add(series, x, y.parse().unwrap_or_default());
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("this line is none: {line:?}"),
                ));
            }
        }
    }
    Ok(charts)
}

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("avidfs-plot FOLDER < LINES");
        return ExitCode::from(2);
    };
    let written = read(io::stdin().lock().lines()).and_then(|charts| {
        charts.iter().try_for_each(|(name, chart)| {
            std::fs::write(Path::new(&folder).join(format!("{name}.svg")), chart.svg())
        })
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("avidfs-plot: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_line_for_each_series_and_a_point_for_each_figure() {
        let lines = ["c\ttitle\tSpeed", "c\tunit\tMB/s", "c\ta<b\t1\t10", "c\ta<b\t2\t30", "c\tother\t2\t35"];
        let charts = read(lines.map(|line| Ok(line.to_owned())).into_iter()).unwrap();
        let svg = charts["c"].svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains(">a&lt;b<") && svg.contains(">40<") && svg.contains(">Speed<"), "{svg}");
        assert!(read(["c\ta\t1\tmany".to_owned()].map(Ok).into_iter()).is_err());
    }
}
