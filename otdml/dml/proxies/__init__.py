r"""Proxy losses: every class is represented by learned points of the sphere, and samples are compared with those.

=======================  ======================================  ================================================
loss                     mean over                               choose it when
=======================  ======================================  ================================================
``ProxyAnchor``          proxies (each gathers its samples)      batches hold several samples per class: it uses
                                                                 the relations between them
``ProxyNCA``             samples (each ranks all proxies)        a cross-entropy with one temperature is wanted
``SoftTriple``           samples (each ranks all classes)        classes have several modes
``PotentialField``       samples and proxies, in all pairs       classes have several modes, or labels have errors
=======================  ======================================  ================================================

The first three cost one matrix product of samples and proxies, the last one that of all points. Only directions
matter: embeddings and proxies are normalised inside, so the gradient of a proxy is inversely proportional to its norm,
and its initial norm sets its effective learning rate. Published runs give proxies a learning rate of their own, 100 to
4000 times the backbone's.
"""
