// Puts the conformance program and all that it imports into one file: the suite starts it hundreds of times, and to find
// and read 200 modules takes half of the time of a start.
export default {
  build: {
    ssr: "conformance/conformance.mjs",
    outDir: "../../target/typescript",
    emptyOutDir: true,
    target: "node20",
    minify: false,
    reportCompressedSize: false,
  },
  ssr: { noExternal: true },
  logLevel: "warn",
};
