//! GB/s of user data on one core, for every path this CPU can run: `cargo bench -p avidfs-common --bench codec`.
//!
//! Encoding and rebuilding count the object's bytes (m fragments), fingerprint and hash those of one fragment.
//! Optional arguments: the code and the fragment length in bytes, `-- 3+2 262144`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::code::Code;
use common::codec::Codec;
use common::fingerprint::Point;
use common::fpcc::Fpcc;
use common::gf256::{CpuPath, cpu_path};
use common::hash::HashId;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let code = arguments.next().unwrap_or("3+2".to_owned());
    let code: Code = code.parse().expect("the first argument is a code such as 3+2");
    let length = arguments.next().unwrap_or("262144".to_owned());
    let length: usize = length.parse().expect("the second argument is a length in bytes");

    println!("code {code}, fragments of {length} bytes, one core, GB/s; this CPU uses {}", cpu_path());
    println!("{:>12} {:>8} {:>8} {:>12}", "path", "encode", "rebuild", "fingerprint");
    for path in CpuPath::available() {
        let encode = encode(path, code, length);
        let rebuild = rebuild(path, code, length);
        println!("{:>12} {encode:8.1} {rebuild:8.1} {:12.1}", path.name(), fingerprint(path, length));
    }
    for id in [HashId::Blake3, HashId::Sha256] {
        println!("{:>12} {:8.1}", id.name(), hash(id, length));
    }
    let (compute, check) = fpcc(code, length);
    println!("{:>12} compute {compute:.1} (of the object), check {check:.1} (of one fragment)", "FPCC");
}

fn encode(path: CpuPath, code: Code, length: usize) -> f64 {
    let codec = Codec::on(path, code);
    let data = fragments(code.m(), length);
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut parity = fragments(code.p(), length);
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    gigabytes_per_second(code.m() * length, || codec.encode(black_box(&data), black_box(&mut parity)))
}

/// The first two data fragments (or as many as the code can lose) out of all the others.
fn rebuild(path: CpuPath, code: Code, length: usize) -> f64 {
    let codec = Codec::on(path, code);
    let lost = 2.min(code.p()).min(code.m());
    let kept = fragments(code.m(), length);
    let kept: Vec<(usize, &[u8])> =
        kept.iter().enumerate().map(|(i, bytes)| (lost + i, bytes.as_slice())).collect();
    let mut wanted = fragments(lost, length);
    let mut wanted: Vec<(usize, &mut [u8])> = wanted.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
    gigabytes_per_second(code.m() * length, || {
        codec.rebuild(black_box(&kept), black_box(&mut wanted)).expect("m fragments are there");
    })
}

fn fingerprint(path: CpuPath, length: usize) -> f64 {
    let point = Point([0x5A; 16]);
    let fragment = &fragments(1, length)[0];
    gigabytes_per_second(length, || {
        black_box(point.fingerprint_on(path, black_box(fragment)));
    })
}

fn hash(id: HashId, length: usize) -> f64 {
    let fragment = &fragments(1, length)[0];
    gigabytes_per_second(length, || {
        black_box(id.hash(black_box(fragment)));
    })
}

/// What a writer and a reader pay in all besides the codec, with BLAKE3 and the CPU's own path.
fn fpcc(code: Code, length: usize) -> (f64, f64) {
    let codec = Codec::of(code);
    let data = fragments(code.m(), length);
    let parity = codec.parity_of(&data);
    let all: Vec<&[u8]> = data.iter().chain(&parity).map(Vec::as_slice).collect();
    let object_length = (code.m() * length) as u64;
    let compute = || Fpcc::compute(&codec, HashId::Blake3, object_length, black_box(&all));
    let fpcc = compute();
    let check = || fpcc.check_bytes(0, black_box(all[0])).expect("the fragment is consistent");
    let compute = gigabytes_per_second(code.m() * length, || {
        black_box(compute());
    });
    (compute, gigabytes_per_second(length, check))
}

/// Written in full, so that no page is touched for the first time under the clock.
fn fragments(count: usize, length: usize) -> Vec<Vec<u8>> {
    let byte = |i: usize, at: usize| (at * 31 + at / 251 + i * 7) as u8;
    (0..count).map(|i| (0..length).map(|at| byte(i, at)).collect()).collect()
}

/// The best of several short runs: what the code can do, not what else the machine did.
fn gigabytes_per_second(bytes: usize, mut work: impl FnMut()) -> f64 {
    work();
    let best = (0..20).map(|_| time_per_call(&mut work)).min().expect("there are runs");
    bytes as f64 / best.as_secs_f64() / 1e9
}

fn time_per_call(work: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < Duration::from_millis(10) {
        (0..4).for_each(|_| work());
        calls += 4;
    }
    start.elapsed() / calls
}
