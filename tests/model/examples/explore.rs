//! scratch
use dormouse_model::explore::*;
use dormouse_model::settings::*;
fn main() {
    let mut s = Settings::default();
    let mut most = 3_000_000;
    let mut deep = false;
    for arg in std::env::args().skip(1) {
        let (k, v) = arg.split_once('=').unwrap_or((&arg, "1"));
        let n: u32 = v.parse().unwrap_or(0);
        let two = |v: &str| { let v: Vec<u8> = v.split(',').map(|n| n.parse().unwrap()).collect(); [v[0], *v.get(1).unwrap_or(&0)] };
        match k {
            "np" => s.processes = n as u8, "ns" => s.subjects = n as u8, "o" => s.opens = two(v), "w" => s.writes = two(v),
            "c" => s.compactions = n as u8, "rl" => s.releases = n as u8, "cr" => s.crashes = n as u8, "rd" => s.reads = n as u8,
            "ev" => s.evictions = n as u8, "u" => s.unknowns = n as u8, "du" => s.duplicates = n as u8, "dr" => s.drains = n as u8,
            "restarts" => s.restarts = n, "lazy" => s.lazy = n == 1, "col" => s.collector = n == 1, "split" => s.split = n == 1,
            "empty" => s.empty = n == 1, "most" => most = n as usize, "deep" => deep = true,
            "b" => s.bases = match v { "d" => Bases::Deltas, "s" => Bases::Snapshots, _ => Bases::Mixed },
            "lie" => s.lie = Some(Lie::ALL[n as usize]),
            _ => panic!("{k}"),
        }
    }
    let r = if deep { deep_first(&s, most) } else { nearest_first(&s, most) };
    println!("{:?} {r}", s.lie);
}
