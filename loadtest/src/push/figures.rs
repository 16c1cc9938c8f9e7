//! Figures beside their goals.

use serde::Serialize;

use crate::{bench::table::Table, report::Quantiles};

/// A measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// The most that is wanted, in the same unit; `None`: the value explains others.
    goal: Option<f64>,
    /// Whether the value is within the goal; true without one.
    met: bool,
}

/// All figures of a run.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Figures(Vec<Figure>);

impl Figures {
    /// Adds a value that has a goal, the most that is wanted in the same unit.
    pub(super) fn goal(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: f64,
    ) {
        self.push(name.into(), value, unit, Some(goal));
    }

    /// Adds a value without a goal.
    pub(super) fn plain(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.push(name.into(), value, unit, None);
    }

    /// Adds the median, the 99th percentile and the maximum of latencies, in ms. The goal is for the percentile.
    pub(super) fn latency(&mut self, name: &str, latency: Quantiles, goal: f64) {
        let millis = |micros: u64| micros as f64 / 1e3;
        self.plain(format!("{name}: p50"), millis(latency.p50), "ms");
        self.goal(format!("{name}: p99"), millis(latency.p99), "ms", goal);
        self.plain(format!("{name}: max"), millis(latency.max), "ms");
    }

    fn push(&mut self, name: String, value: f64, unit: &'static str, goal: Option<f64>) {
        self.0.push(Figure {
            name,
            value,
            unit,
            goal,
            // NaN is no value within a goal.
            met: goal.is_none_or(|goal| value <= goal),
        });
    }

    /// Renders the figures with their goals.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(&["figure", "measured", "goal", "met?"]);
        for figure in &self.0 {
            let unit = figure.unit;
            let (goal, met) = match figure.goal {
                Some(goal) => (
                    format!("≤ {goal} {unit}"),
                    if figure.met { "yes" } else { "NO" },
                ),
                None => (String::new(), ""),
            };
            let measured = match figure.value {
                small if small < 10.0 => format!("{small:.2} {unit}"),
                value => format!("{value:.1} {unit}"),
            };
            table.push(vec![figure.name.clone(), measured, goal, met.to_owned()]);
        }
        table
    }

    /// Whether all goals are met, for people.
    pub(super) fn verdict(&self) -> String {
        let missed = self.0.iter().filter(|figure| !figure.met);
        let missed: Vec<_> = missed.map(|figure| &*figure.name).collect();
        match missed.is_empty() {
            true => "all goals met".to_owned(),
            false => format!("missed: {}", missed.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_up_to_the_goal_itself() {
        let mut figures = Figures::default();
        figures.goal("a", 50.0, "ms", 50.0);
        figures.plain("b", 1e9, "ms");
        assert_eq!(figures.verdict(), "all goals met");
        figures.goal("c", 50.1, "ms", 50.0);
        figures.goal("d", f64::NAN, "%", 1.0);
        assert_eq!(figures.verdict(), "missed: c, d");
    }

    #[test]
    fn the_goal_of_latencies_is_for_the_99th_percentile() {
        let mut figures = Figures::default();
        let latency = Quantiles {
            p50: 2_500,
            p99: 51_000,
            max: 90_000,
            ..Quantiles::default()
        };
        figures.latency("resign", latency, 50.0);
        let table = figures.table().to_string();
        let cells: Vec<Vec<_>> = table
            .lines()
            .skip(2)
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(cells[0][1..5], ["resign: p50", "2.50 ms", "", ""]);
        assert_eq!(cells[1][1..5], ["resign: p99", "51.0 ms", "≤ 50 ms", "NO"]);
        assert_eq!(cells[2][1..5], ["resign: max", "90.0 ms", "", ""]);
        assert_eq!(figures.verdict(), "missed: resign: p99");
    }
}
