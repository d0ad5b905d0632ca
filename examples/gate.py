"""Good enough is known: draw batches of four until one image is, at most three times."""

import steer


pipe = steer.shapes.pipeline()
gate = steer.Gate(steer.BestOfN(4), threshold=steer.Threshold(0.82), max_rounds=3)
guided = steer.guided(pipe, reward="shapes", method=gate)
out = guided("three orange triangles on a grey background", num_inference_steps=8)
out.images[0].save("gate.png")
print(out.accepted, out.rewards, out.report.ledger.denoiser_rows)
