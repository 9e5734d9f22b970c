//! What others published, beside what we get.
//!
//! Owns the table of figures that the acceptance tests hold to.

use super::{Effort, Section, Table, table::short};
use crate::{
    closed::{
        chain::{Pace, Scheme, ln_mttdl, repair_traffic_with_time},
        published::{Azure, Windows, available, copyset_loss},
        storj,
        trust::audits_needed,
    },
    event::{self, HOURS_PER_YEAR, Scenario, Unit},
    law::RepairLaw,
    logmath::nines,
    placement::{self, Study},
    random::Lifetime,
};

const MONTH_H: f64 = 730.5;

pub(super) fn published(effort: Effort) -> Section {
    let mut table = Table::new(&["what", "source", "repair-time law", "printed", "here"]);
    let mut row = |what: &str, source: &str, law: &str, printed: &str, here: String| {
        table.row([what.into(), source.into(), law.into(), printed.into(), here]);
    };
    let poisson = |data, total| 100.0 * storj::durability_poisson(data, total, 0.1);
    let storj_paper = "Storj white paper v3 (2018)";
    row(
        "durability 20 of 40, %",
        storj_paper,
        "none: one month",
        "99.999999807694154",
        format!("{:.15}", poisson(20, 40)),
    );
    row(
        "durability 4 of 8, %",
        storj_paper,
        "none: one month",
        "99.858868985411326",
        format!("{:.15}", poisson(4, 8)),
    );
    row(
        "repair ratio 20/40, m = 35, 1 month",
        storj_paper,
        "exponential",
        "9.36",
        format!("{:.3}", storj::repair_ratio(20, 40, 35, 1.0)),
    );
    row(
        "nines per repair interval 30/80, m = 45, 12 months",
        storj_paper,
        "exponential, 11.95 h (ours)",
        "25",
        format!("{:.2}", nines(storj::ln_loss_ratio(30, 80, 45, 12.0 * MONTH_H, 11.95))),
    );
    row(
        "the same 20/40, m = 30, 6 months",
        storj_paper,
        "exponential, 11.95 h (ours)",
        "17",
        format!("{:.2}", nines(storj::ln_loss_ratio(20, 40, 30, 6.0 * MONTH_H, 11.95))),
    );
    row(
        "segment health, days (34 and 40 of 29)",
        "Storj, priority.go",
        "none",
        "3154, 5385",
        [34, 40].map(|h| short(storj::segment_health(h, 29, 24_000, 5.435e-5))).join(", "),
    );
    let vault = Windows { total: 20, parity: 3, annual_failure_rate: 0.00405, rebuild_days: 6.5 };
    row(
        "loss a year, 17 of 20",
        "Backblaze, erasure-coding-durability",
        "fixed, 6.5 days",
        "7.354e-12",
        format!("{:.3e}", vault.loss_per_year()),
    );
    row(
        "availability, 16 fragments rate 1/2",
        "Weatherspoon, Kubiatowicz (2002)",
        "none",
        "0.999994",
        format!("{:.14}", available(1_000_000, 100_000, 16, 8)),
    );
    row(
        "1 % of 5,000 nodes lost at once, %",
        "Cidon et al. (2013)",
        "none",
        "22.8, 0.78, 0.15",
        [275_000.0, 8333.0, 1667.0]
            .map(|sets| format!("{:.3}", 100.0 * copyset_loss(5000, 50, 3, sets)))
            .join(", "),
    );
    let azure = |total, safe, decodable| {
        short(Azure { total, safe, decodable, node_years: 5.0 }.mttdl_years())
    };
    row(
        "MTTDL in years: 3 copies, RS(6,3), LRC(6,2,2)",
        "Huang et al. (2012)",
        "exponential; node life 5 y is ours",
        "3.5e9, 6.1e11, 2.6e12",
        [azure(3, 1, 0.0), azure(9, 6, 0.0), azure(10, 7, 0.86)].join(", "),
    );
    row(
        "audits to find 1 % of damage with 99 %",
        "Ateniese et al. (2007)",
        "none",
        "460",
        short(audits_needed(0.01, 0.99)),
    );
    let simulated = simulated(effort);
    let text = format!(
        "Before it is believed, the simulator reproduces these. The tests `s1_…` to `s16_…` in \
         `sim/tests/acceptance.rs` hold it to them.\n\n{}\n\
         The Poisson law of the first rows overstates loss 3 to 180 times against the binomial \
         one. The nines of the Storj table are per repair interval, not per year; one of nine rows \
         differs from print: no repair time gives its 17 and the other eight (see \
         `s3_no_repair_time_gives_the_row_that_differs`).\n\n{}",
        table.markdown(),
        simulated.markdown()
    );
    Section {
        title: "What others published, and what we get",
        text,
        tables: vec![table, simulated],
        charts: Vec::new(),
    }
}

/// The event simulation against the closed forms and the ring against exact integration.
fn simulated(effort: Effort) -> Table {
    let mut table = Table::new(&["simulated", "repair-time law", "closed form", "here", "seed"]);
    let chunks = if effort == Effort::Full { 2000 } else { 200 };
    let month = Lifetime::new(MONTH_H, 1.0);
    for (data, total, threshold, law) in [
        (4, 6, 5, RepairLaw::Exponential),
        (4, 6, 5, RepairLaw::Fixed),
        (10, 16, 13, RepairLaw::Exponential),
        (10, 16, 13, RepairLaw::Fixed),
    ] {
        let (Ok(scheme), Ok(life)) = (Scheme::new(data, total, threshold), month) else {
            continue;
        };
        let scenario = Scenario {
            chunks,
            years: 4.2,
            unit: Unit::Chunk,
            ..Scenario::plain(2000, scheme, life, 24.0, law)
        };
        let Ok(out) = event::run(&scenario) else { continue };
        let pace = Pace { life: MONTH_H, repair: 24.0 };
        let closed = ln_mttdl(scheme, pace, law).exp() / HOURS_PER_YEAR;
        let here = out.mttdl_years().unwrap_or(f64::NAN);
        table.row([
            format!("MTTDL in years, {data} of {total}, r = {threshold}, life 1 month, τ 24 h"),
            law.to_string(),
            short(closed),
            format!("{} ({} losses)", short(here), out.losses),
            scenario.seed.to_string(),
        ]);
        let moved = out.repair_ratio(scenario.years);
        if law == RepairLaw::Fixed {
            let traffic = repair_traffic_with_time(scheme, pace) * HOURS_PER_YEAR;
            table.row([
                format!("repair bytes per stored byte and year, the same {data} of {total}"),
                law.to_string(),
                short(traffic),
                short(moved),
                scenario.seed.to_string(),
            ]);
        }
    }
    let study = Study { nodes: 1000, shards: 16, tokens: 64, seed: 1 };
    table.row([
        "relative standard deviation of the load, 1,000 nodes, n = 16, 64 tokens".to_owned(),
        "none: no repair".to_owned(),
        short(placement::expected_deviation(16, 64)),
        short(placement::load(study).deviation),
        study.seed.to_string(),
    ]);
    table
}
